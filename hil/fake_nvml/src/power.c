/* Power, energy, clocks and field values: what a controller reads. */
#include "core.h"

#define GETTER(name, table, type, expression)                                                                         \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, type *out) {                                                        \
        REQUIRE(out);                                                                                                 \
        ENTER(table);                                                                                                 \
        *out = (type)(expression);                                                                                    \
        return NVML_SUCCESS;                                                                                          \
    }

static u64 enforced_limit(gpu_t *gpu) {
    u64 requested = LOAD(gpu->limit_requested_milliwatt[0]);
    u64 override = LOAD(gpu->limit_override_milliwatt[0]);
    return override != 0 && override < requested ? override : requested;
}

/* 1 s mean on Ampere and newer except A100, instantaneous elsewhere. */
static u64 usual_power(gpu_t *gpu) {
    return gpu->has_mean_power[0] ? LOAD(gpu->power_mean_milliwatt[0]) : LOAD(gpu->power_instant_milliwatt[0]);
}

GETTER(nvmlDeviceGetPowerUsage, nvmlDeviceGetPowerUsage, unsigned int, usual_power(gpu))
GETTER(nvmlDeviceGetTotalEnergyConsumption, nvmlDeviceGetTotalEnergyConsumption, u64, LOAD(gpu->energy_millijoule[0]))
GETTER(nvmlDeviceGetEnforcedPowerLimit, nvmlDeviceGetEnforcedPowerLimit, unsigned int, enforced_limit(gpu))
GETTER(nvmlDeviceGetPowerManagementLimit, nvmlDeviceGetPowerManagementLimit, unsigned int,
       LOAD(gpu->limit_requested_milliwatt[0]))
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, nvmlDeviceGetPowerManagementDefaultLimit, unsigned int,
       gpu->limit_default_milliwatt[0])
GETTER(nvmlDeviceGetPowerManagementMode, nvmlDeviceGetPowerManagementLimit, unsigned int, 1)
GETTER(nvmlDeviceGetPowerSource, nvmlDeviceGetPowerUsage, unsigned int, 0)
GETTER(nvmlDeviceGetPerformanceState, nvmlDeviceGetClockInfo, unsigned int, 0)
GETTER(nvmlDeviceGetPowerState, nvmlDeviceGetClockInfo, unsigned int, 0)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, nvmlDeviceGetCurrentClocksEventReasons, u64, LOAD(gpu->event_reasons[0]))
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, nvmlDeviceGetCurrentClocksEventReasons, u64,
       LOAD(gpu->event_reasons[0]))
GETTER(nvmlDeviceGetSupportedClocksEventReasons, nvmlDeviceGetCurrentClocksEventReasons, u64, 0x1ff)
GETTER(nvmlDeviceGetSupportedClocksThrottleReasons, nvmlDeviceGetCurrentClocksEventReasons, u64, 0x1ff)

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *low,
                                                                 unsigned int *high) {
    REQUIRE(low && high);
    ENTER(nvmlDeviceGetPowerManagementLimitConstraints);
    *low = (unsigned int)gpu->limit_min_milliwatt[0];
    *high = (unsigned int)gpu->limit_max_milliwatt[0];
    return NVML_SUCCESS;
}

/* ---------------------------------------------------------------------------------------------------------- clocks */

static nvmlReturn_t clock_of(gpu_t *gpu, unsigned int type, u64 sm_mhz, unsigned int *out) {
    REQUIRE(out && type < CLOCK_TYPE_COUNT);
    *out = (unsigned int)(type == CLOCK_MEMORY ? gpu->memory_clock_mhz[0] : sm_mhz);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *out) {
    ENTER(nvmlDeviceGetClockInfo);
    return clock_of(gpu, type, LOAD(gpu->sm_clock_mhz[0]), out);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *out) {
    ENTER(nvmlDeviceGetMaxClockInfo);
    return clock_of(gpu, type, gpu->clocks_mhz[0], out);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, unsigned int type, unsigned int *out) {
    return nvmlDeviceGetMaxClockInfo(device, type, out);
}

EXPORT nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, unsigned int type, unsigned int *out) {
    ENTER(nvmlDeviceGetApplicationsClock);
    u64 chosen = LOAD(gpu->application_clock_mhz[0]);
    return clock_of(gpu, type, chosen != 0 ? chosen : gpu->base_clock_mhz[0], out);
}

EXPORT nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, unsigned int type, unsigned int *out) {
    ENTER(nvmlDeviceGetApplicationsClock);
    return clock_of(gpu, type, gpu->base_clock_mhz[0], out);
}

EXPORT nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, unsigned int type, unsigned int id, unsigned int *out) {
    switch (id) {
    case 0: return nvmlDeviceGetClockInfo(device, type, out);
    case 1: return nvmlDeviceGetApplicationsClock(device, type, out);
    case 2: return nvmlDeviceGetDefaultApplicationsClock(device, type, out);
    case 3: return nvmlDeviceGetMaxCustomerBoostClock(device, type, out);
    default: return NVML_ERROR_INVALID_ARGUMENT;
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count, unsigned int *out) {
    REQUIRE(count);
    ENTER(nvmlDeviceGetSupportedMemoryClocks);
    unsigned int room = out ? *count : 0;
    *count = 1;
    if (room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    out[0] = (unsigned int)gpu->memory_clock_mhz[0];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memory_mhz,
                                                         unsigned int *count, unsigned int *out) {
    REQUIRE(count);
    ENTER(nvmlDeviceGetSupportedGraphicsClocks);
    if (memory_mhz != gpu->memory_clock_mhz[0]) return NVML_ERROR_NOT_FOUND;
    unsigned int room = out ? *count : 0;
    *count = (unsigned int)gpu->clock_count[0];
    if (room < *count) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < *count; i++) out[i] = (unsigned int)gpu->clocks_mhz[i];
    return NVML_SUCCESS;
}

/* ---------------------------------------------------------------------------------------------------- field values */

enum {
    FIELD_THROTTLE_POWER = 74,
    FIELD_THROTTLE_THERMAL = 75,
    FIELD_MEMORY_TEMPERATURE = 82,
    FIELD_ENERGY_TOTAL = 83,
    FIELD_POWER_AVERAGE = 185,
    FIELD_POWER_INSTANT = 186,
    FIELD_LIMIT_MIN = 187,
    FIELD_LIMIT_MAX = 188,
    FIELD_LIMIT_DEFAULT = 189,
    FIELD_LIMIT_CURRENT = 190,
    FIELD_ENERGY = 191,
    FIELD_LIMIT_REQUESTED = 192,
    FIELD_THROTTLE_SW_THERMAL = 269,
    FIELD_THROTTLE_HW_THERMAL = 270,
    FIELD_THROTTLE_BRAKE = 271,
    SCOPE_MODULE = 1,
};

nvmlReturn_t smoothing_field(gpu_t *gpu, unsigned int id, unsigned int scope, u64 *out);

static nvmlReturn_t power_field(gpu_t *gpu, unsigned int id, unsigned int scope, u64 *out) {
    if (id == FIELD_POWER_AVERAGE && !gpu->has_mean_power[0]) return NVML_ERROR_NOT_SUPPORTED;
    if (scope == SCOPE_MODULE) {
        if (!gpu->has_module_power[0]) return NVML_ERROR_NOT_SUPPORTED;
        *out = LOAD(gpu->power_module_milliwatt[0]);
        return NVML_SUCCESS;
    }
    if (scope != 0) return NVML_ERROR_NOT_SUPPORTED;
    *out = id == FIELD_POWER_AVERAGE ? usual_power(gpu) : LOAD(gpu->power_instant_milliwatt[0]);
    return NVML_SUCCESS;
}

static nvmlReturn_t read_field(gpu_t *gpu, field_value_t *field, u64 *out) {
    field->value_type = VALUE_UINT;
    switch (field->field_id) {
    case FIELD_POWER_AVERAGE:
    case FIELD_POWER_INSTANT: return power_field(gpu, field->field_id, field->scope_id, out);
    case FIELD_MEMORY_TEMPERATURE: *out = LOAD(gpu->memory_temperature_c[0]); return NVML_SUCCESS;
    case FIELD_LIMIT_MIN: *out = gpu->limit_min_milliwatt[0]; return NVML_SUCCESS;
    case FIELD_LIMIT_MAX: *out = gpu->limit_max_milliwatt[0]; return NVML_SUCCESS;
    case FIELD_LIMIT_DEFAULT: *out = gpu->limit_default_milliwatt[0]; return NVML_SUCCESS;
    case FIELD_LIMIT_CURRENT: *out = enforced_limit(gpu); return NVML_SUCCESS;
    case FIELD_LIMIT_REQUESTED: *out = LOAD(gpu->limit_requested_milliwatt[0]); return NVML_SUCCESS;
    default: break;
    }
    field->value_type = VALUE_ULONGLONG;
    switch (field->field_id) {
    case FIELD_ENERGY:
    case FIELD_ENERGY_TOTAL: *out = LOAD(gpu->energy_millijoule[0]); return NVML_SUCCESS;
    case FIELD_THROTTLE_POWER: *out = LOAD(gpu->throttle_power_ns[0]); return NVML_SUCCESS;
    case FIELD_THROTTLE_THERMAL:
    case FIELD_THROTTLE_SW_THERMAL: *out = LOAD(gpu->throttle_thermal_ns[0]); return NVML_SUCCESS;
    case FIELD_THROTTLE_HW_THERMAL: *out = LOAD(gpu->throttle_hw_thermal_ns[0]); return NVML_SUCCESS;
    case FIELD_THROTTLE_BRAKE: *out = LOAD(gpu->throttle_brake_ns[0]); return NVML_SUCCESS;
    default: field->value_type = VALUE_UINT; return smoothing_field(gpu, field->field_id, field->scope_id, out);
    }
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, field_value_t *fields) {
    REQUIRE(fields && count > 0);
    ENTER(nvmlDeviceGetFieldValues);
    long long age_us = (long long)(now_mono_ns() - LOAD(gpu->sample_mono_ns[0])) / 1000;
    for (int i = 0; i < count; i++) {
        u64 value = 0;
        fields[i].result = read_field(gpu, &fields[i], &value);
        fields[i].timestamp_us = (long long)now_wall_us() - (age_us > 0 ? age_us : 0);
        fields[i].latency_us = 0;
        fields[i].value.ull = value;
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceClearFieldValues(nvmlDevice_t device, int count, field_value_t *fields) {
    REQUIRE(fields && count > 0);
    ENTER(nvmlDeviceGetFieldValues);
    for (int i = 0; i < count; i++) fields[i].result = NVML_SUCCESS;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, unsigned int type, u64 since_us, unsigned int *value_type,
                                         unsigned int *count, sample_t *out) {
    REQUIRE(value_type && count);
    ENTER(nvmlDeviceGetSamples);
    u64 age_us = (now_mono_ns() - LOAD(gpu->sample_mono_ns[0])) / 1000;
    u64 stamp_us = now_wall_us() - age_us;
    *value_type = VALUE_UINT;
    if (out && *count < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    if (stamp_us <= since_us) return NVML_ERROR_NOT_FOUND;
    *count = 1; /* the sizing call answers success here, unlike the lists of clocks */
    if (!out) return NVML_SUCCESS;
    out[0].timestamp_us = stamp_us;
    out[0].value.ull = 0;
    switch (type) {
    case 0: out[0].value.ui = (unsigned int)LOAD(gpu->power_instant_milliwatt[0]); return NVML_SUCCESS;
    case 1: out[0].value.ui = (unsigned int)LOAD(gpu->gpu_util_percent[0]); return NVML_SUCCESS;
    case 2: out[0].value.ui = (unsigned int)LOAD(gpu->memory_util_percent[0]); return NVML_SUCCESS;
    case 5: out[0].value.ui = (unsigned int)LOAD(gpu->sm_clock_mhz[0]); return NVML_SUCCESS;
    case 6: out[0].value.ui = (unsigned int)gpu->memory_clock_mhz[0]; return NVML_SUCCESS;
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
}
