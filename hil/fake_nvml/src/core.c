/* Attaches to the shared state, resolves handles and applies injected faults; also the functions without a GPU. */
#define _GNU_SOURCE
#include "core.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HANG_SLICE_NS 2000000ull /* how soon a released hang is noticed */

struct handle {
    u64 slot;
};

static struct handle handles[GPU_MAX];
static header_t *header;
static gpu_t *gpus;
static int references;
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t driver_lock = PTHREAD_MUTEX_INITIALIZER;

header_t *state_header(void) { return header; }
gpu_t *state_gpus(void) { return gpus; }
nvmlDevice_t handle_of(u64 slot) { return &handles[slot]; }

static u64 read_clock_ns(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

u64 now_mono_ns(void) { return read_clock_ns(CLOCK_MONOTONIC); }
u64 now_wall_us(void) { return read_clock_ns(CLOCK_REALTIME) / 1000; }

static void sleep_ns(u64 ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000ull), .tv_nsec = (long)(ns % 1000000000ull)};
    while (nanosleep(&t, &t) != 0) {
    }
}

/* ------------------------------------------------------------------------------------------------ attach, detach */

static nvmlReturn_t attach(void) {
    const char *path = getenv("RAMPART_FAKE_NVML_STATE");
    if (!path || !*path) return NVML_ERROR_DRIVER_NOT_LOADED;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return NVML_ERROR_DRIVER_NOT_LOADED;
    struct stat status;
    nvmlReturn_t result = NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (fstat(fd, &status) == 0 && (size_t)status.st_size >= sizeof(header_t)) {
        void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (memory != MAP_FAILED) {
            header_t *found = memory;
            size_t needed = sizeof(header_t) + found->gpu_count[0] * sizeof(gpu_t);
            if (found->magic[0] == STATE_MAGIC && found->layout_version[0] == LAYOUT_VERSION &&
                found->header_size[0] == sizeof(header_t) && found->gpu_size[0] == sizeof(gpu_t) &&
                found->gpu_count[0] <= GPU_MAX && (size_t)status.st_size >= needed) {
                header = found; /* an older mapping stays: a hung call may still use it */
                gpus = (gpu_t *)((char *)memory + sizeof(header_t));
                result = NVML_SUCCESS;
            } else {
                munmap(memory, (size_t)status.st_size);
            }
        }
    }
    close(fd);
    return result;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&init_lock);
    nvmlReturn_t result = references > 0 ? NVML_SUCCESS : attach();
    if (result == NVML_SUCCESS && LOAD(header->init_error[0]) != 0) result = (nvmlReturn_t)LOAD(header->init_error[0]);
    if (result == NVML_SUCCESS) {
        for (u64 slot = 0; slot < GPU_MAX; slot++) handles[slot].slot = slot;
        references++;
        ADD(header->init_count[0], 1);
    }
    pthread_mutex_unlock(&init_lock);
    return result;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&init_lock);
    nvmlReturn_t result = references > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (references > 0) references--;
    pthread_mutex_unlock(&init_lock);
    return result;
}

static int is_attached(void) { return __atomic_load_n(&references, __ATOMIC_ACQUIRE) > 0; }

/* -------------------------------------------------------------------------------------------------------- faults */

static u64 driver_free_ns;         /* when the calls that were let in before have all returned */
static __thread u64 call_ends_ns; /* of the call this thread is in */

static void sleep_until(u64 when_ns) {
    u64 now = now_mono_ns();
    if (when_ns > now) sleep_ns(when_ns - now);
}

/* The driver takes one call after the other: wait until those before are through. A setter takes effect after this. */
static void take_turn(gpu_t *gpu, enum function f) {
    u64 latency = LOAD(gpu->latency_ns[f]), start = now_mono_ns();
    call_ends_ns = 0;
    if (latency == 0) return;
    if (LOAD(header->is_serialised[0]) != 0) {
        pthread_mutex_lock(&driver_lock);
        if (start < driver_free_ns) start = driver_free_ns;
        driver_free_ns = start + latency;
        pthread_mutex_unlock(&driver_lock);
    }
    call_ends_ns = start + latency;
    sleep_until(start);
}

static void wait_hang(gpu_t *gpu, enum function f) {
    if (LOAD(gpu->hang_ns[f]) == 0) return;
    int holds = LOAD(header->hang_holds_lock[0]) != 0;
    if (holds) pthread_mutex_lock(&driver_lock);
    u64 start = now_mono_ns();
    while (now_mono_ns() - start < LOAD(gpu->hang_ns[f])) sleep_ns(HANG_SLICE_NS);
    if (holds) pthread_mutex_unlock(&driver_lock);
}

static nvmlReturn_t injected_error(gpu_t *gpu, enum function f) {
    u64 code = LOAD(gpu->error_code[f]);
    u64 left = LOAD(gpu->error_left[f]);
    while (code != 0 && left != 0) {
        if (left == UINT64_MAX) return (nvmlReturn_t)code;
        if (__atomic_compare_exchange_n(&gpu->error_left[f], &left, left - 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            return (nvmlReturn_t)code;
        }
    }
    return NVML_SUCCESS;
}

nvmlReturn_t slot_of(nvmlDevice_t device, u64 *slot) {
    if (!is_attached()) return NVML_ERROR_UNINITIALIZED;
    if (device < handles || device >= handles + GPU_MAX || device->slot >= header->gpu_count[0]) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *slot = device->slot;
    return NVML_SUCCESS;
}

static nvmlReturn_t begin(nvmlDevice_t device, enum function f, gpu_t **gpu) {
    u64 slot;
    nvmlReturn_t result = slot_of(device, &slot);
    if (result != NVML_SUCCESS) return result;
    *gpu = &gpus[slot];
    ADD((*gpu)->call_count[f], 1);
    wait_hang(*gpu, f);
    if (LOAD((*gpu)->is_lost[0]) || LOAD((*gpu)->is_absent[0])) return NVML_ERROR_GPU_IS_LOST;
    return injected_error(*gpu, f);
}

nvmlReturn_t enter(nvmlDevice_t device, enum function f, gpu_t **gpu) {
    nvmlReturn_t result = begin(device, f, gpu);
    if (result != NVML_SUCCESS) return result;
    take_turn(*gpu, f);
    sleep_until(call_ends_ns);
    return result;
}

nvmlReturn_t enter_setter(nvmlDevice_t device, enum function f, gpu_t **gpu) {
    nvmlReturn_t result = begin(device, f, gpu);
    if (result != NVML_SUCCESS) return result;
    if (!LOAD(header->is_privileged[0]) || LOAD((*gpu)->denies_setters[0])) return NVML_ERROR_NO_PERMISSION;
    take_turn(*gpu, f);
    return NVML_SUCCESS;
}

nvmlReturn_t leave(void) {
    sleep_until(call_ends_ns);
    return NVML_SUCCESS;
}

nvmlReturn_t copy_text(char *out, unsigned int size, const char *text) {
    REQUIRE(out);
    size_t length = strlen(text) + 1;
    if (size < length) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, length);
    return NVML_SUCCESS;
}

/* -------------------------------------------------------------------------------------------------- system queries */

EXPORT const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned int size) {
    return is_attached() ? copy_text(out, size, header->driver_version) : NVML_ERROR_UNINITIALIZED;
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned int size) {
    return is_attached() ? copy_text(out, size, header->driver_version) : NVML_ERROR_UNINITIALIZED;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    REQUIRE(version);
    if (!is_attached()) return NVML_ERROR_UNINITIALIZED;
    *version = (int)header->cuda_version[0];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *out, unsigned int size) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "r");
    if (!file) return NVML_ERROR_NOT_FOUND;
    size_t got = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[got] = 0;
    return copy_text(out, size, text);
}

EXPORT nvmlReturn_t nvmlUnitGetCount(unsigned int *count) {
    REQUIRE(count);
    *count = 0;
    return NVML_SUCCESS;
}

/* --------------------------------------------------------------------------------------------------------- handles */

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    REQUIRE(count);
    if (!is_attached()) return NVML_ERROR_UNINITIALIZED;
    *count = 0;
    for (u64 slot = 0; slot < header->gpu_count[0]; slot++) *count += LOAD(gpus[slot].is_absent[0]) == 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) { return nvmlDeviceGetCount_v2(count); }

static nvmlReturn_t give(u64 slot, enum function f, nvmlDevice_t *device) {
    gpu_t *gpu;
    nvmlReturn_t result = enter(&handles[slot], f, &gpu);
    if (result == NVML_SUCCESS) *device = &handles[slot];
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    REQUIRE(device);
    if (!is_attached()) return NVML_ERROR_UNINITIALIZED;
    for (u64 slot = 0; slot < header->gpu_count[0]; slot++) {
        if (!LOAD(gpus[slot].is_absent[0]) && LOAD(gpus[slot].index[0]) == index) {
            return give(slot, F_nvmlDeviceGetHandleByIndex_v2, device);
        }
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvmlReturn_t find(size_t offset, const char *text, nvmlDevice_t *device) {
    REQUIRE(text && device);
    if (!is_attached()) return NVML_ERROR_UNINITIALIZED;
    for (u64 slot = 0; slot < header->gpu_count[0]; slot++) {
        if (!LOAD(gpus[slot].is_absent[0]) && strcasecmp((const char *)&gpus[slot] + offset, text) == 0) {
            return give(slot, F_nvmlDeviceGetHandleByUUID, device);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    return find(__builtin_offsetof(gpu_t, uuid), uuid, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    return find(__builtin_offsetof(gpu_t, serial), serial, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device) {
    return find(__builtin_offsetof(gpu_t, pci_bus_id), bus_id, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig) {
    (void)index, (void)mig;
    ENTER(nvmlDeviceGetMigMode);
    return LOAD(gpu->has_mig[0]) ? NVML_ERROR_NOT_FOUND : NVML_ERROR_NOT_SUPPORTED;
}
