/* The memory that the fake NVML library and the plant share, field by field.
 *
 * One file, mapped by both sides: a header, then one record per GPU. Every field is 8 bytes wide (or an array of such,
 * or text whose length is a multiple of 8), so that each is read and written atomically and no padding exists.
 * `hil/fake_nvml/state.py` builds its view from the two lists below: this file is the only description of the layout.
 * Change anything here and LAYOUT_VERSION must rise.
 *
 * Who writes: "plant" the simulator, "client" this library on behalf of a program, "fault" a test.
 */
#ifndef RAMPART_FAKE_NVML_STATE_H
#define RAMPART_FAKE_NVML_STATE_H

#include <stdint.h>

#define STATE_MAGIC 0x4c4d564e4b414652ull /* "RFAKNVML", little endian */
#define LAYOUT_VERSION 2
#define GPU_MAX 64
#define CLOCK_MAX 320     /* B300 lists 256 clocks */
#define FUNCTION_MAX 192  /* length of the fault tables; functions.h lists fewer */
#define EVENT_RING 16u

typedef uint64_t u64;
typedef int64_t i64;
typedef double f64;

#define HEADER_FIELDS(X)                                                                                              \
    X(u64, magic, 1)                                                                                                  \
    X(u64, layout_version, 1)                                                                                         \
    X(u64, gpu_count, 1)                                                                                              \
    X(u64, header_size, 1)                                                                                            \
    X(u64, gpu_size, 1)                                                                                               \
    X(char, driver_version, 80)                                                                                       \
    X(u64, cuda_version, 1)                                                                                           \
    X(u64, is_privileged, 1)     /* fault: 0 = clients lack CAP_SYS_ADMIN, setters answer NO_PERMISSION */            \
    X(u64, is_serialised, 1)     /* fault: 1 = calls of one process wait for each other, as in the real driver */     \
    X(u64, hang_holds_lock, 1)   /* fault: 1 = a hanging call blocks every other call of its process */               \
    X(u64, init_error, 1)        /* fault: code that nvmlInit answers, 0 = none */                                    \
    X(u64, init_count, 1)        /* client: how often a program attached */

#define GPU_FIELDS(X)                                                                                                 \
    /* identity: plant, once */                                                                                       \
    X(char, name, 96)                                                                                                 \
    X(char, uuid, 96)                                                                                                 \
    X(char, pci_bus_id, 32)                                                                                           \
    X(char, serial, 32)                                                                                               \
    X(u64, index, 1)             /* position in the driver's numbering; a hot swap changes it */                      \
    X(u64, architecture, 1)                                                                                           \
    X(u64, compute_major, 1)                                                                                          \
    X(u64, compute_minor, 1)                                                                                          \
    X(u64, pci_device_id, 1)                                                                                          \
    X(u64, core_count, 1)                                                                                             \
    X(u64, memory_total, 1)                                                                                           \
    X(u64, base_clock_mhz, 1)                                                                                         \
    X(u64, memory_clock_mhz, 1)                                                                                       \
    X(u64, clock_count, 1)                                                                                            \
    X(u64, clocks_mhz, 320)      /* descending, as the driver lists them */                                           \
    X(u64, limit_min_milliwatt, 1)                                                                                    \
    X(u64, limit_max_milliwatt, 1)                                                                                    \
    X(u64, limit_default_milliwatt, 1)                                                                                \
    X(u64, has_mean_power, 1)    /* 185 answers and GetPowerUsage is a 1 s mean; 0: no 185, GetPowerUsage as 186 */   \
    X(u64, has_mig, 1)                                                                                                \
    X(u64, has_power_smoothing, 1)                                                                                    \
    X(u64, has_module_power, 1)                                                                                       \
    /* sensors: plant, every step */                                                                                  \
    X(u64, power_mean_milliwatt, 1)                                                                                   \
    X(u64, power_instant_milliwatt, 1)                                                                                \
    X(u64, power_module_milliwatt, 1)                                                                                 \
    X(u64, energy_millijoule, 1)                                                                                      \
    X(u64, sample_mono_ns, 1)                                                                                         \
    X(u64, sm_clock_mhz, 1)                                                                                           \
    X(u64, gpu_util_percent, 1)                                                                                       \
    X(u64, memory_util_percent, 1)                                                                                    \
    X(u64, memory_used, 1)                                                                                            \
    X(u64, temperature_c, 1)                                                                                          \
    X(u64, memory_temperature_c, 1)                                                                                   \
    X(u64, event_reasons, 1)                                                                                          \
    X(u64, throttle_power_ns, 1)                                                                                      \
    X(u64, throttle_thermal_ns, 1)                                                                                    \
    X(u64, throttle_hw_thermal_ns, 1)                                                                                 \
    X(u64, throttle_brake_ns, 1)                                                                                      \
    X(u64, pcie_rx_kilobyte_per_s, 1)                                                                                 \
    X(u64, pcie_tx_kilobyte_per_s, 1)                                                                                 \
    X(u64, process_pid, 1)       /* 0 = no process */                                                                 \
    X(u64, process_memory, 1)                                                                                         \
    X(u64, ecc_corrected, 1)                                                                                          \
    X(u64, ecc_uncorrected, 1)                                                                                        \
    X(u64, event_count, 1)       /* plant: rises with each event, after its place in the ring is filled */            \
    X(u64, event_type, 16)       /* ring of EVENT_RING: event k lies at k % EVENT_RING */                             \
    X(u64, event_data, 16)       /* Xid number, for Xid events */                                                     \
    /* settings: client */                                                                                            \
    X(u64, persistence_mode, 1)                                                                                       \
    X(u64, mig_mode, 1)          /* 1: sliced into instances; load is then told per instance only */                  \
    X(u64, compute_mode, 1)                                                                                           \
    X(u64, limit_requested_milliwatt, 1)                                                                              \
    X(u64, limit_write_count, 1)                                                                                      \
    X(u64, limit_write_ns, 1)    /* CLOCK_MONOTONIC when the write took effect */                                     \
    X(u64, locked_clocks, 1)     /* low MHz << 32 | high MHz; 0 = not locked */                                       \
    X(u64, clock_write_count, 1)                                                                                      \
    X(u64, clock_write_ns, 1)                                                                                         \
    X(u64, locked_memory_clocks, 1)                                                                                   \
    X(u64, application_clock_mhz, 1) /* 0 = default */                                                                \
    X(u64, smoothing_is_enabled, 1)                                                                                   \
    X(u64, smoothing_profile, 1)                                                                                      \
    X(f64, smoothing_params, 40) /* 5 presets x 8: % floor, up W/s, down W/s, hysteresis ms, ... as set */            \
    X(u64, workload_profiles, 4) /* requested mask, 255 bits */                                                       \
    /* misbehaviour: fault */                                                                                         \
    X(u64, limit_override_milliwatt, 1) /* enforced below the request (module or thermal cap); 0 = none */            \
    X(u64, is_lost, 1)           /* fallen off the bus: GPU_IS_LOST */                                                \
    X(u64, is_absent, 1)         /* not enumerated at all */                                                          \
    X(u64, denies_setters, 1)                                                                                         \
    X(u64, ignores_limit, 1)     /* accepts and does nothing */                                                       \
    X(u64, ignores_clocks, 1)                                                                                         \
    X(u64, smoothing_lifetime_percent, 1)                                                                             \
    X(u64, error_code, 192)      /* per function: code to answer */                                                   \
    X(u64, error_left, 192)      /* how many more times; UINT64_MAX = until cleared */                                \
    X(u64, latency_ns, 192)                                                                                           \
    X(u64, hang_ns, 192)         /* a call waits this long, or until the fault is cleared */                          \
    X(u64, call_count, 192)      /* client */

#define DECLARE_FIELD(type, name, count) type name[count];
typedef struct { HEADER_FIELDS(DECLARE_FIELD) } header_t;
typedef struct { GPU_FIELDS(DECLARE_FIELD) } gpu_t;
#undef DECLARE_FIELD

_Static_assert(sizeof(header_t) % 8 == 0 && sizeof(gpu_t) % 8 == 0, "every field is a multiple of 8 bytes");

#endif
