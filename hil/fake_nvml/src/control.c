/* Setters. Each takes effect at once, is counted and stamped, and returns after its latency. */
#include "core.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------------ power limit */

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int limit_milliwatt) {
    ENTER_SETTER(nvmlDeviceSetPowerManagementLimit);
    if (limit_milliwatt < gpu->limit_min_milliwatt[0] || limit_milliwatt > gpu->limit_max_milliwatt[0]) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (!LOAD(gpu->ignores_limit[0])) {
        STORE(gpu->limit_requested_milliwatt[0], limit_milliwatt);
        STORE(gpu->limit_write_ns[0], now_mono_ns());
    }
    ADD(gpu->limit_write_count[0], 1);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t device, power_value_t *value) {
    REQUIRE(value);
    if (value->version != (sizeof *value | 2u << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (value->scope != 0) return NVML_ERROR_NOT_SUPPORTED;
    return nvmlDeviceSetPowerManagementLimit(device, value->value_milliwatt);
}

/* ----------------------------------------------------------------------------------------------------------- clocks */

static u64 resolve_clock(gpu_t *gpu, unsigned int mhz) {
    u64 highest = gpu->clocks_mhz[0], lowest = gpu->clocks_mhz[gpu->clock_count[0] - 1];
    if (mhz > highest) return highest;
    u64 best = lowest; /* the highest supported clock that is not above the wish */
    for (u64 i = gpu->clock_count[0]; i-- > 0;) {
        if (gpu->clocks_mhz[i] <= mhz) best = gpu->clocks_mhz[i];
    }
    return best;
}

static void write_clock_lock(gpu_t *gpu, u64 packed) {
    if (!LOAD(gpu->ignores_clocks[0])) {
        STORE(gpu->locked_clocks[0], packed);
        STORE(gpu->clock_write_ns[0], now_mono_ns());
    }
    ADD(gpu->clock_write_count[0], 1);
}

static int is_symbolic(unsigned int mhz) { return mhz >= CLOCK_LIMIT_RANGE_START; }

/* Both arguments in MHz, or both symbols: a mixed pair is refused, and so is a number that is no symbol. */
static nvmlReturn_t resolve_lock(gpu_t *gpu, unsigned int low_mhz, unsigned int high_mhz, u64 *packed) {
    if (is_symbolic(low_mhz) != is_symbolic(high_mhz)) return NVML_ERROR_INVALID_ARGUMENT;
    if (!is_symbolic(low_mhz)) {
        u64 low = resolve_clock(gpu, low_mhz), high = resolve_clock(gpu, high_mhz);
        if (low > high || high_mhz == 0) return NVML_ERROR_INVALID_ARGUMENT;
        *packed = low << 32 | high;
        return NVML_SUCCESS;
    }
    u64 highest = gpu->clocks_mhz[0], lowest = gpu->clocks_mhz[gpu->clock_count[0] - 1], tdp = gpu->base_clock_mhz[0];
    if (low_mhz == CLOCK_LIMIT_TDP && high_mhz == CLOCK_LIMIT_TDP) *packed = tdp << 32 | tdp;
    else if (low_mhz == CLOCK_LIMIT_UNLIMITED && high_mhz == CLOCK_LIMIT_TDP) *packed = lowest << 32 | tdp;
    else if (low_mhz == CLOCK_LIMIT_TDP && high_mhz == CLOCK_LIMIT_UNLIMITED) *packed = tdp << 32 | highest;
    else if (low_mhz == CLOCK_LIMIT_UNLIMITED && high_mhz == CLOCK_LIMIT_UNLIMITED) *packed = 0; /* as a reset */
    else return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int low_mhz, unsigned int high_mhz) {
    u64 packed;
    ENTER_SETTER(nvmlDeviceSetGpuLockedClocks);
    nvmlReturn_t resolved = resolve_lock(gpu, low_mhz, high_mhz, &packed);
    if (resolved != NVML_SUCCESS) return resolved;
    write_clock_lock(gpu, packed);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
    ENTER_SETTER(nvmlDeviceResetGpuLockedClocks);
    write_clock_lock(gpu, 0);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t device, unsigned int low_mhz, unsigned int high_mhz) {
    ENTER_SETTER(nvmlDeviceSetMemoryLockedClocks);
    if (low_mhz > high_mhz) return NVML_ERROR_INVALID_ARGUMENT;
    STORE(gpu->locked_memory_clocks[0], (u64)low_mhz << 32 | high_mhz);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t device) {
    ENTER_SETTER(nvmlDeviceResetMemoryLockedClocks);
    STORE(gpu->locked_memory_clocks[0], 0);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceSetApplicationsClocks(nvmlDevice_t device, unsigned int memory_mhz, unsigned int mhz) {
    ENTER_SETTER(nvmlDeviceSetApplicationsClocks);
    if (memory_mhz != gpu->memory_clock_mhz[0] || resolve_clock(gpu, mhz) != mhz) return NVML_ERROR_INVALID_ARGUMENT;
    STORE(gpu->application_clock_mhz[0], mhz);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceResetApplicationsClocks(nvmlDevice_t device) {
    ENTER_SETTER(nvmlDeviceResetApplicationsClocks);
    STORE(gpu->application_clock_mhz[0], 0);
    return leave();
}

/* ------------------------------------------------------------------------------------------------------------ modes */

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned int mode) {
    ENTER_SETTER(nvmlDeviceSetPersistenceMode);
    if (mode > 1) return NVML_ERROR_INVALID_ARGUMENT;
    STORE(gpu->persistence_mode[0], mode);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t device, unsigned int mode) {
    ENTER_SETTER(nvmlDeviceSetComputeMode);
    if (mode > 3) return NVML_ERROR_INVALID_ARGUMENT;
    STORE(gpu->compute_mode[0], mode);
    return leave();
}

/* ------------------------------------------------------------------------------------------------- power smoothing */

#define SMOOTHING_PRESETS 5u
#define SMOOTHING_PARAMS 8u
#define MILLI_PER_UNIT 1000.0
#define REQUIRE_VERSION(pointer, type)                                                                                \
    if ((pointer)->version != STRUCT_VERSION(type, 1u)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH

enum { PARAM_FLOOR, PARAM_RAMP_UP, PARAM_RAMP_DOWN, PARAM_HYSTERESIS };

static double smoothing_param(gpu_t *gpu, u64 profile, unsigned int param) {
    return gpu->smoothing_params[profile * SMOOTHING_PARAMS + param];
}

/* Fields 251 to 264: rates are set in W/s and read back in mW/s. The scope of 260 to 263 is the preset's number. */
nvmlReturn_t smoothing_field(gpu_t *gpu, unsigned int id, unsigned int scope, u64 *out) {
    if (id < 251 || id > 264 || !gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED;
    if (id >= 260 && id <= 263 && scope >= SMOOTHING_PRESETS) return NVML_ERROR_INVALID_ARGUMENT;
    u64 active = LOAD(gpu->smoothing_profile[0]);
    double top = (double)gpu->limit_max_milliwatt[0];
    switch (id) {
    case 251: *out = LOAD(gpu->smoothing_is_enabled[0]); break;
    case 252: *out = LOAD(state_header()->is_privileged[0]); break;
    case 253: *out = 0; break;
    case 254: *out = gpu->limit_max_milliwatt[0]; break;
    case 255:
        *out = LOAD(gpu->smoothing_is_enabled[0]) ? (u64)(top * smoothing_param(gpu, active, PARAM_FLOOR) / 100.0) : 0;
        break;
    case 256: *out = 90; break;
    case 257: *out = 0; break;
    case 258: *out = LOAD(gpu->smoothing_lifetime_percent[0]); break;
    case 259: *out = SMOOTHING_PRESETS; break;
    case 260: *out = (u64)smoothing_param(gpu, scope, PARAM_FLOOR); break;
    case 261: *out = (u64)(smoothing_param(gpu, scope, PARAM_RAMP_UP) * MILLI_PER_UNIT); break;
    case 262: *out = (u64)(smoothing_param(gpu, scope, PARAM_RAMP_DOWN) * MILLI_PER_UNIT); break;
    case 263: *out = (u64)smoothing_param(gpu, scope, PARAM_HYSTERESIS); break;
    case 264: *out = active; break;
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDevicePowerSmoothingSetState(nvmlDevice_t device, smoothing_state_t *state) {
    REQUIRE(state);
    REQUIRE_VERSION(state, smoothing_state_t);
    REQUIRE(state->state <= 1);
    ENTER_SETTER(nvmlDeviceSetPowerSmoothing);
    if (!gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED;
    STORE(gpu->smoothing_is_enabled[0], state->state);
    return leave();
}

EXPORT nvmlReturn_t nvmlDevicePowerSmoothingActivatePresetProfile(nvmlDevice_t device, smoothing_profile_t *profile) {
    REQUIRE(profile);
    REQUIRE_VERSION(profile, smoothing_profile_t);
    REQUIRE(profile->profile_id < SMOOTHING_PRESETS);
    ENTER_SETTER(nvmlDeviceSetPowerSmoothing);
    if (!gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED;
    STORE(gpu->smoothing_profile[0], profile->profile_id);
    return leave();
}

EXPORT nvmlReturn_t nvmlDevicePowerSmoothingUpdatePresetProfileParam(nvmlDevice_t device, smoothing_profile_t *profile) {
    REQUIRE(profile);
    REQUIRE_VERSION(profile, smoothing_profile_t);
    REQUIRE(profile->profile_id < SMOOTHING_PRESETS && profile->param_id < SMOOTHING_PARAMS);
    if (!(profile->value >= 0.0)) return NVML_ERROR_INVALID_ARGUMENT;
    if (profile->param_id == PARAM_FLOOR && profile->value > 90.0) return NVML_ERROR_INVALID_ARGUMENT;
    ENTER_SETTER(nvmlDeviceSetPowerSmoothing);
    if (!gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED;
    __atomic_store(&gpu->smoothing_params[profile->profile_id * SMOOTHING_PARAMS + profile->param_id], &profile->value,
                   __ATOMIC_RELEASE);
    return leave();
}
