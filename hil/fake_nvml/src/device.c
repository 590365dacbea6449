/* What a GPU is and how it fares: identity, memory, utilisation, temperature, processes, errors. */
#include "core.h"

#include <stdio.h>
#include <string.h>

#define FIXED_VBIOS "00.00.00.00.00"

/* A getter of one value taken from the record. */
#define GETTER(name, table, type, expression)                                                                         \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, type *out) {                                                        \
        REQUIRE(out);                                                                                                 \
        ENTER(table);                                                                                                 \
        *out = (type)(expression);                                                                                    \
        return NVML_SUCCESS;                                                                                          \
    }
/* A text taken from the record. */
#define TEXT(name, table, expression)                                                                                 \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, char *out, unsigned int size) {                                     \
        ENTER(table);                                                                                                 \
        return copy_text(out, size, expression);                                                                      \
    }
/* Something these GPUs do not have. */
#define ABSENT(name, ...)                                                                                             \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, ##__VA_ARGS__) {                                                    \
        ENTER(nvmlDeviceGetIdentity);                                                                                 \
        return NVML_ERROR_NOT_SUPPORTED;                                                                              \
    }

/* -------------------------------------------------------------------------------------------------------- identity */

TEXT(nvmlDeviceGetName, nvmlDeviceGetName, gpu->name)
TEXT(nvmlDeviceGetUUID, nvmlDeviceGetUUID, gpu->uuid)
TEXT(nvmlDeviceGetSerial, nvmlDeviceGetIdentity, gpu->serial)
TEXT(nvmlDeviceGetBoardPartNumber, nvmlDeviceGetIdentity, "HIL-" FIXED_VBIOS)
TEXT(nvmlDeviceGetVbiosVersion, nvmlDeviceGetIdentity, FIXED_VBIOS)
TEXT(nvmlDeviceGetInforomImageVersion, nvmlDeviceGetIdentity, FIXED_VBIOS)
GETTER(nvmlDeviceGetIndex, nvmlDeviceGetIdentity, unsigned int, LOAD(gpu->index[0]))
GETTER(nvmlDeviceGetMinorNumber, nvmlDeviceGetIdentity, unsigned int, gpu - state_gpus())
GETTER(nvmlDeviceGetModuleId, nvmlDeviceGetIdentity, unsigned int, gpu - state_gpus() + 1)
GETTER(nvmlDeviceGetBoardId, nvmlDeviceGetIdentity, unsigned int, 0x100 * (gpu - state_gpus() + 1))
GETTER(nvmlDeviceGetMultiGpuBoard, nvmlDeviceGetIdentity, unsigned int, 0)
GETTER(nvmlDeviceGetBrand, nvmlDeviceGetIdentity, unsigned int, 14) /* NVML_BRAND_NVIDIA */
GETTER(nvmlDeviceGetArchitecture, nvmlDeviceGetIdentity, unsigned int, gpu->architecture[0])
GETTER(nvmlDeviceGetNumGpuCores, nvmlDeviceGetIdentity, unsigned int, gpu->core_count[0])
GETTER(nvmlDeviceGetDisplayMode, nvmlDeviceGetIdentity, unsigned int, 0)
GETTER(nvmlDeviceGetDisplayActive, nvmlDeviceGetIdentity, unsigned int, 0)
GETTER(nvmlDeviceGetVirtualizationMode, nvmlDeviceGetIdentity, unsigned int, 0)
GETTER(nvmlDeviceIsMigDeviceHandle, nvmlDeviceGetIdentity, unsigned int, 0)
GETTER(nvmlDeviceGetPersistenceMode, nvmlDeviceGetPersistenceMode, unsigned int, LOAD(gpu->persistence_mode[0]))
GETTER(nvmlDeviceGetComputeMode, nvmlDeviceGetComputeMode, unsigned int, LOAD(gpu->compute_mode[0]))
ABSENT(nvmlDeviceGetFanSpeed, unsigned int *percent)
ABSENT(nvmlDeviceGetFanSpeed_v2, unsigned int fan, unsigned int *percent)
ABSENT(nvmlDeviceGetNumFans, unsigned int *count)
ABSENT(nvmlDeviceGetAutoBoostedClocksEnabled, unsigned int *is_on, unsigned int *default_is_on)
ABSENT(nvmlDeviceGetDriverModel, unsigned int *current, unsigned int *pending)
ABSENT(nvmlDeviceGetDriverModel_v2, unsigned int *current, unsigned int *pending)
ABSENT(nvmlDeviceGetC2cModeInfoV, void *info)
ABSENT(nvmlDeviceGetConfComputeMemSizeInfo, void *info)
ABSENT(nvmlDeviceGetNvLinkState, unsigned int link, unsigned int *is_active)
ABSENT(nvmlDeviceGetGpuInstanceId, unsigned int *id)
ABSENT(nvmlDeviceGetComputeInstanceId, unsigned int *id)
ABSENT(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, nvmlDevice_t *parent)

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    REQUIRE(major && minor);
    ENTER(nvmlDeviceGetIdentity);
    *major = (int)gpu->compute_major[0];
    *minor = (int)gpu->compute_minor[0];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, pci_info_t *out) {
    REQUIRE(out);
    ENTER(nvmlDeviceGetIdentity);
    memset(out, 0, sizeof *out);
    sscanf(gpu->pci_bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", gpu->pci_bus_id);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04x:%02x:%02x.0", out->domain & 0xffff, out->bus & 0xff,
             out->device & 0xff);
    out->pci_device_id = (unsigned int)gpu->pci_device_id[0];
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, pci_info_t *out) {
    return nvmlDeviceGetPciInfo_v3(device, out);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    REQUIRE(current && pending);
    ENTER(nvmlDeviceGetMigMode);
    if (!gpu->has_mig[0]) return NVML_ERROR_NOT_SUPPORTED;
    *current = *pending = (unsigned int)LOAD(gpu->mig_mode[0]);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode, nvmlReturn_t *activation) {
    REQUIRE(activation && mode <= 1);
    ENTER_SETTER(nvmlDeviceSetMigMode);
    if (!gpu->has_mig[0]) return NVML_ERROR_NOT_SUPPORTED;
    STORE(gpu->mig_mode[0], mode);
    *activation = NVML_SUCCESS;
    return leave();
}

GETTER(nvmlDeviceGetMaxMigDeviceCount, nvmlDeviceGetMigMode, unsigned int, gpu->has_mig[0] ? 7 : 0)

EXPORT nvmlReturn_t nvmlDeviceGetAPIRestriction(nvmlDevice_t device, unsigned int type, unsigned int *is_restricted) {
    (void)type;
    REQUIRE(is_restricted);
    ENTER(nvmlDeviceGetIdentity);
    *is_restricted = 1;
    return NVML_SUCCESS;
}

/* ------------------------------------------------------------------------------------- memory, load, temperature */

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, memory_t *out) {
    REQUIRE(out);
    ENTER(nvmlDeviceGetMemoryInfo);
    out->total = gpu->memory_total[0];
    out->used = LOAD(gpu->memory_used[0]);
    out->free = out->total - out->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, memory_v2_t *out) {
    REQUIRE(out);
    memory_t memory;
    nvmlReturn_t result = nvmlDeviceGetMemoryInfo(device, &memory);
    if (result != NVML_SUCCESS) return result;
    if (out->version != (sizeof *out | 2u << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    out->total = memory.total;
    out->reserved = 0;
    out->free = memory.free;
    out->used = memory.used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, memory_t *out) {
    REQUIRE(out);
    ENTER(nvmlDeviceGetMemoryInfo);
    out->total = gpu->memory_total[0]; /* here the three fields are total, free, used as well */
    out->used = 0;
    out->free = out->total;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, utilization_t *out) {
    REQUIRE(out);
    ENTER(nvmlDeviceGetUtilizationRates);
    if (LOAD(gpu->mig_mode[0])) return NVML_ERROR_NOT_SUPPORTED; /* of the whole GPU there is none in MIG mode */
    out->gpu = (unsigned int)LOAD(gpu->gpu_util_percent[0]);
    out->memory = (unsigned int)LOAD(gpu->memory_util_percent[0]);
    return NVML_SUCCESS;
}

static nvmlReturn_t media_load(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us) {
    REQUIRE(percent && period_us);
    ENTER(nvmlDeviceGetUtilizationRates);
    *percent = 0;
    *period_us = 167000;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *us) {
    return media_load(device, percent, us);
}

EXPORT nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *us) {
    return media_load(device, percent, us);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *out) {
    REQUIRE(out && sensor == 0);
    ENTER(nvmlDeviceGetTemperature);
    *out = (unsigned int)LOAD(gpu->temperature_c[0]);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, temperature_t *out) {
    REQUIRE(out && out->sensor == 0);
    ENTER(nvmlDeviceGetTemperature);
    if (out->version != (sizeof *out | 1u << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    out->temperature_c = (int)LOAD(gpu->temperature_c[0]);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned int type, unsigned int *out) {
    static const unsigned int thresholds_c[] = {92, 89, 95, 87};
    REQUIRE(out);
    ENTER(nvmlDeviceGetTemperature);
    if (type >= sizeof thresholds_c / sizeof *thresholds_c) return NVML_ERROR_NOT_SUPPORTED;
    *out = thresholds_c[type];
    return NVML_SUCCESS;
}

/* ------------------------------------------------------------------------------------------------------- processes */

static nvmlReturn_t list_processes(nvmlDevice_t device, unsigned int *count, void *out, int is_compute, size_t stride) {
    REQUIRE(count);
    ENTER(nvmlDeviceGetRunningProcesses);
    unsigned int room = out ? *count : 0;
    u64 pid = is_compute ? LOAD(gpu->process_pid[0]) : 0;
    *count = pid != 0;
    if (pid == 0) return NVML_SUCCESS;
    if (room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    process_t process = {.pid = (unsigned int)pid,
                         .used_memory = LOAD(gpu->process_memory[0]),
                         .gpu_instance_id = 0xffffffffu,
                         .compute_instance_id = 0xffffffffu};
    memcpy(out, &process, stride); /* version 1 is the beginning of version 3 */
    return NVML_SUCCESS;
}

#define PROCESS_LIST(name, type, is_compute)                                                                          \
    EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *out) {                                   \
        return list_processes(device, count, out, is_compute, sizeof(type));                                          \
    }
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses, process_v1_t, 1)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, process_t, 1)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, process_t, 1)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses, process_v1_t, 0)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, process_t, 0)
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, process_t, 0)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses, process_v1_t, 0)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, process_t, 0)
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, process_t, 0)
#undef PROCESS_LIST

EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, void *out, unsigned int *count, u64 since_us) {
    (void)out, (void)since_us;
    REQUIRE(count);
    ENTER(nvmlDeviceGetRunningProcesses);
    *count = 0;
    return NVML_ERROR_NOT_FOUND; /* the driver's answer when it has no sample of any process */
}

/* ---------------------------------------------------------------------------------------------------- errors, PCIe */

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    REQUIRE(current && pending);
    ENTER(nvmlDeviceGetErrors);
    *current = *pending = 1;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int type, unsigned int counter, u64 *out) {
    (void)counter;
    REQUIRE(out && type <= 1);
    ENTER(nvmlDeviceGetErrors);
    *out = type == 0 ? LOAD(gpu->ecc_corrected[0]) : LOAD(gpu->ecc_uncorrected[0]);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                                    unsigned int location, u64 *out) {
    (void)location;
    return nvmlDeviceGetTotalEccErrors(device, type, counter, out);
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                              unsigned int *is_pending, unsigned int *has_failed) {
    REQUIRE(corrected && uncorrected && is_pending && has_failed);
    ENTER(nvmlDeviceGetErrors);
    *corrected = *uncorrected = *is_pending = *has_failed = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, unsigned int counter, unsigned int *out) {
    REQUIRE(out && counter <= 1);
    ENTER(nvmlDeviceGetPcie);
    *out = (unsigned int)(counter == 0 ? LOAD(gpu->pcie_tx_kilobyte_per_s[0]) : LOAD(gpu->pcie_rx_kilobyte_per_s[0]));
    return NVML_SUCCESS;
}

#define PCIE_GENERATION(gpu) ((gpu)->architecture[0] >= 9 ? 5 : (gpu)->architecture[0] >= 7 ? 4 : 3)
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, nvmlDeviceGetPcie, unsigned int, PCIE_GENERATION(gpu))
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, nvmlDeviceGetPcie, unsigned int, PCIE_GENERATION(gpu))
GETTER(nvmlDeviceGetCurrPcieLinkWidth, nvmlDeviceGetPcie, unsigned int, 16)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, nvmlDeviceGetPcie, unsigned int, 16)
GETTER(nvmlDeviceGetPcieReplayCounter, nvmlDeviceGetErrors, unsigned int, 0)
