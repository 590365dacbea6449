/* Attaching to the state, finding a GPU behind a handle, and the faults every call passes through. */
#ifndef RAMPART_FAKE_NVML_CORE_H
#define RAMPART_FAKE_NVML_CORE_H

#include "functions.h"
#include "nvml_abi.h"
#include "state.h"

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define STORE(field, value) __atomic_store_n(&(field), (value), __ATOMIC_RELEASE)
#define ADD(field, value) __atomic_add_fetch(&(field), (value), __ATOMIC_ACQ_REL)

/* The mapped state; NULL before nvmlInit. */
header_t *state_header(void);
gpu_t *state_gpus(void);
u64 now_mono_ns(void);
u64 now_wall_us(void);

/* Handles are stable addresses, one per record; a handle outlives the numbering of its GPU. */
nvmlDevice_t handle_of(u64 slot);
nvmlReturn_t slot_of(nvmlDevice_t device, u64 *slot);

/* Every call on a GPU starts here: is it initialised, present and not lost; then its latency, hang and error. */
nvmlReturn_t enter(nvmlDevice_t device, enum function f, gpu_t **gpu);
/* A setter starts here (permission too) and ends in `leave`: it takes effect first and returns after its latency. */
nvmlReturn_t enter_setter(nvmlDevice_t device, enum function f, gpu_t **gpu);
nvmlReturn_t leave(void);

/* Copies text with its terminator, or says that the caller's buffer is too small. */
nvmlReturn_t copy_text(char *out, unsigned int size, const char *text);

#define ENTER(f)                                                                                                      \
    gpu_t *gpu;                                                                                                       \
    nvmlReturn_t entered = enter(device, F_##f, &gpu);                                                                \
    if (entered != NVML_SUCCESS) return entered
#define ENTER_SETTER(f)                                                                                               \
    gpu_t *gpu;                                                                                                       \
    nvmlReturn_t entered = enter_setter(device, F_##f, &gpu);                                                         \
    if (entered != NVML_SUCCESS) return entered
#define REQUIRE(pointer)                                                                                              \
    if (!(pointer)) return NVML_ERROR_INVALID_ARGUMENT

#endif
