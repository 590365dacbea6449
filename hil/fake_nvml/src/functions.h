/* Functions whose latency, hang and errors can be set per GPU, in the order of the fault tables. Append only. */
#ifndef RAMPART_FAKE_NVML_FUNCTIONS_H
#define RAMPART_FAKE_NVML_FUNCTIONS_H

#define FUNCTIONS(X)                                                                                                  \
    X(nvmlDeviceGetHandleByIndex_v2)                                                                                  \
    X(nvmlDeviceGetHandleByUUID)                                                                                      \
    X(nvmlDeviceGetName)                                                                                              \
    X(nvmlDeviceGetUUID)                                                                                              \
    X(nvmlDeviceGetIdentity) /* serial, minor, board, PCI, architecture, capability, VBIOS and other constants */     \
    X(nvmlDeviceGetMemoryInfo)                                                                                        \
    X(nvmlDeviceGetUtilizationRates)                                                                                  \
    X(nvmlDeviceGetTemperature)                                                                                       \
    X(nvmlDeviceGetPowerUsage)                                                                                        \
    X(nvmlDeviceGetEnforcedPowerLimit)                                                                                \
    X(nvmlDeviceGetPowerManagementLimit)                                                                              \
    X(nvmlDeviceGetPowerManagementLimitConstraints)                                                                   \
    X(nvmlDeviceGetPowerManagementDefaultLimit)                                                                       \
    X(nvmlDeviceGetTotalEnergyConsumption)                                                                            \
    X(nvmlDeviceGetFieldValues)                                                                                       \
    X(nvmlDeviceGetClockInfo)                                                                                         \
    X(nvmlDeviceGetMaxClockInfo)                                                                                      \
    X(nvmlDeviceGetSupportedMemoryClocks)                                                                             \
    X(nvmlDeviceGetSupportedGraphicsClocks)                                                                           \
    X(nvmlDeviceGetApplicationsClock)                                                                                 \
    X(nvmlDeviceGetCurrentClocksEventReasons)                                                                         \
    X(nvmlDeviceGetPersistenceMode)                                                                                   \
    X(nvmlDeviceGetComputeMode)                                                                                       \
    X(nvmlDeviceGetMigMode)                                                                                           \
    X(nvmlDeviceGetRunningProcesses) /* compute, graphics and MPS, every version */                                   \
    X(nvmlDeviceGetSamples)                                                                                           \
    X(nvmlDeviceGetErrors) /* ECC, remapped rows, PCIe replays */                                                     \
    X(nvmlDeviceGetPcie)                                                                                              \
    X(nvmlDeviceGetPowerSmoothing)                                                                                    \
    X(nvmlDeviceGetWorkloadPowerProfiles)                                                                             \
    X(nvmlDeviceSetPowerManagementLimit)                                                                              \
    X(nvmlDeviceSetGpuLockedClocks)                                                                                   \
    X(nvmlDeviceResetGpuLockedClocks)                                                                                 \
    X(nvmlDeviceSetMemoryLockedClocks)                                                                                \
    X(nvmlDeviceResetMemoryLockedClocks)                                                                              \
    X(nvmlDeviceSetApplicationsClocks)                                                                                \
    X(nvmlDeviceResetApplicationsClocks)                                                                              \
    X(nvmlDeviceSetPersistenceMode)                                                                                   \
    X(nvmlDeviceSetComputeMode)                                                                                       \
    X(nvmlDeviceSetPowerSmoothing)                                                                                    \
    X(nvmlDeviceSetWorkloadPowerProfiles)                                                                             \
    X(nvmlDeviceRegisterEvents)                                                                                       \
    X(nvmlDeviceSetMigMode)

#define DECLARE_INDEX(name) F_##name,
enum function { FUNCTIONS(DECLARE_INDEX) FUNCTION_COUNT };
#undef DECLARE_INDEX

#endif
