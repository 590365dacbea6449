/* Event sets: Xid and clock events that the plant raises. */
#include "core.h"

#include <stdlib.h>
#include <time.h>

#define POLL_NS 2000000l
/* Single and double bit ECC, P-state, Xid, clock, MIG configuration, GPU unavailable, recovery action. */
#define SUPPORTED_EVENTS (0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100 | 0x4000 | 0x8000)

typedef struct {
    u64 mask[GPU_MAX];
    u64 seen[GPU_MAX];
} event_set_t;

EXPORT nvmlReturn_t nvmlEventSetCreate(event_set_t **set) {
    REQUIRE(set);
    *set = calloc(1, sizeof **set);
    return *set ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

EXPORT nvmlReturn_t nvmlEventSetFree(event_set_t *set) {
    free(set);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, u64 *types) {
    REQUIRE(types);
    ENTER(nvmlDeviceRegisterEvents);
    *types = SUPPORTED_EVENTS;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, u64 types, event_set_t *set) {
    REQUIRE(set);
    ENTER(nvmlDeviceRegisterEvents);
    if (types == 0 || (types & ~(u64)SUPPORTED_EVENTS)) return NVML_ERROR_NOT_SUPPORTED; /* one unknown bit refuses all */
    u64 slot = (u64)(gpu - state_gpus());
    set->mask[slot] = types;
    set->seen[slot] = LOAD(gpu->event_count[0]);
    return NVML_SUCCESS;
}

static int take_event(event_set_t *set, event_data_t *out) {
    for (u64 slot = 0; slot < state_header()->gpu_count[0]; slot++) {
        gpu_t *gpu = &state_gpus()[slot];
        u64 count = LOAD(gpu->event_count[0]);
        if (set->mask[slot] == 0) continue;
        if (count - set->seen[slot] > EVENT_RING) set->seen[slot] = count - EVENT_RING; /* overrun: the oldest are lost */
        while (set->seen[slot] != count) {
            u64 place = set->seen[slot]++ % EVENT_RING;
            u64 type = LOAD(gpu->event_type[place]);
            if ((type & set->mask[slot]) == 0) continue;
            *out = (event_data_t){handle_of(slot), type, LOAD(gpu->event_data[place]), 0xffffffffu, 0xffffffffu};
            return 1;
        }
    }
    return 0;
}

EXPORT nvmlReturn_t nvmlEventSetWait_v2(event_set_t *set, event_data_t *out, unsigned int timeout_ms) {
    REQUIRE(set && out);
    if (!state_header()) return NVML_ERROR_UNINITIALIZED;
    u64 end = now_mono_ns() + (u64)timeout_ms * 1000000ull;
    do {
        if (take_event(set, out)) return NVML_SUCCESS;
        struct timespec pause = {.tv_sec = 0, .tv_nsec = POLL_NS};
        nanosleep(&pause, NULL);
    } while (now_mono_ns() < end);
    return NVML_ERROR_TIMEOUT;
}

EXPORT nvmlReturn_t nvmlEventSetWait(event_set_t *set, event_data_t *out, unsigned int timeout_ms) {
    return nvmlEventSetWait_v2(set, out, timeout_ms);
}
