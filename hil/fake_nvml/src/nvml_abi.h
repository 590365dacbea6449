/* The part of NVML's binary interface that this library serves: return codes, and structures as callers lay them out. */
#ifndef RAMPART_FAKE_NVML_ABI_H
#define RAMPART_FAKE_NVML_ABI_H

#include <stdint.h>

typedef int nvmlReturn_t;
typedef struct handle *nvmlDevice_t;

#define EXPORT __attribute__((visibility("default")))

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
};

enum { CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEMORY = 2, CLOCK_VIDEO = 3, CLOCK_TYPE_COUNT = 4 };

/* Symbolic arguments of nvmlDeviceSetGpuLockedClocks. */
#define CLOCK_LIMIT_RANGE_START 0xffffff00u /* where the symbols begin; none itself */
#define CLOCK_LIMIT_TDP 0xffffff01u
#define CLOCK_LIMIT_UNLIMITED 0xffffff02u

enum { VALUE_DOUBLE = 0, VALUE_UINT = 1, VALUE_ULONGLONG = 3 };

typedef union {
    double d;
    unsigned int ui;
    unsigned long long ull;
    long long sll;
} value_t;

typedef struct {
    unsigned int field_id;
    unsigned int scope_id;
    long long timestamp_us;
    long long latency_us;
    unsigned int value_type;
    nvmlReturn_t result;
    value_t value;
} field_value_t;

typedef struct {
    unsigned long long timestamp_us;
    value_t value;
} sample_t;

typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info_t;

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

typedef struct {
    unsigned int gpu, memory;
} utilization_t;

typedef struct {
    unsigned int pid;
    unsigned long long used_memory;
    unsigned int gpu_instance_id, compute_instance_id;
} process_t;

typedef struct {
    unsigned int pid;
    unsigned long long used_memory;
} process_v1_t;

typedef struct {
    unsigned int version, sensor;
    int temperature_c;
} temperature_t;

typedef struct {
    unsigned int version, scope, value_milliwatt;
} power_value_t;

typedef struct {
    nvmlDevice_t device;
    unsigned long long type, data;
    unsigned int gpu_instance_id, compute_instance_id;
} event_data_t;

typedef struct {
    unsigned int version, state;
} smoothing_state_t;

typedef struct {
    unsigned int version, profile_id, param_id;
    double value;
} smoothing_profile_t;

typedef struct {
    unsigned int mask[8];
} mask255_t;

typedef struct {
    unsigned int version;
    mask255_t profiles, requested, enforced;
} workload_current_t;

typedef struct {
    unsigned int version;
    mask255_t requested;
} workload_requested_t;

typedef struct {
    unsigned int operation;
    mask255_t profiles;
} workload_update_t;

typedef struct {
    unsigned int version, profile_id, priority;
    mask255_t conflicting;
} workload_info_t;

#define WORKLOAD_PROFILE_MAX 255
typedef struct {
    unsigned int version;
    mask255_t profiles;
    workload_info_t profile[WORKLOAD_PROFILE_MAX]; /* by number, not packed */
} workload_infos_t;

#define STRUCT_VERSION(type, number) ((unsigned int)(sizeof(type) | (number) << 24))

#endif
