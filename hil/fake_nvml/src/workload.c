/* Workload power profiles of Blackwell GPUs: what is offered, what was asked for, and which of it is in force.
 *
 * Profiles 0 (max P), 1 (max Q) and 15, 22, 23 (further max Q) exclude each other; of those asked for, the one with the
 * lowest number is in force. Which real profiles conflict, and how they rank, each GPU says for itself.
 */
#include "core.h"

#include <string.h>

#define PROFILES 0x1ffffffull                                               /* all that have a name, 0 to 24 */
#define GOALS (1ull << 0 | 1ull << 1 | 1ull << 15 | 1ull << 22 | 1ull << 23) /* of these, one at a time */
#define BITS_PER_WORD 32

enum { OPERATION_CLEAR = 0, OPERATION_SET = 1, OPERATION_OVERWRITE = 2 };

static void fill(mask255_t *mask, u64 low_bits) {
    memset(mask, 0, sizeof *mask);
    mask->mask[0] = (unsigned int)low_bits;
    mask->mask[1] = (unsigned int)(low_bits >> BITS_PER_WORD);
}

static void load_mask(gpu_t *gpu, mask255_t *mask) {
    for (int i = 0; i < 8; i++) mask->mask[i] = (unsigned int)(LOAD(gpu->workload_profiles[i / 2]) >> 32 * (i % 2));
}

static void store_mask(gpu_t *gpu, const mask255_t *mask) {
    for (int i = 0; i < 4; i++) STORE(gpu->workload_profiles[i], (u64)mask->mask[2 * i + 1] << 32 | mask->mask[2 * i]);
}

static u64 enforced(u64 requested) {
    u64 goals = requested & GOALS;
    return (requested & PROFILES & ~GOALS) | (goals & (~goals + 1)); /* the lowest bit of the goals */
}

EXPORT nvmlReturn_t nvmlDeviceWorkloadPowerProfileGetProfilesInfo(nvmlDevice_t device, workload_infos_t *out) {
    REQUIRE(out);
    if (out->version != STRUCT_VERSION(*out, 1u)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    ENTER(nvmlDeviceGetWorkloadPowerProfiles);
    if (!gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED; /* Blackwell has both, older GPUs neither */
    memset(out->profile, 0, sizeof out->profile);
    fill(&out->profiles, PROFILES);
    for (unsigned int id = 0; PROFILES >> id; id++) {
        workload_info_t *info = &out->profile[id];
        info->version = STRUCT_VERSION(*info, 1u);
        info->profile_id = info->priority = id;
        fill(&info->conflicting, 1ull << id & GOALS ? GOALS & ~(1ull << id) : 0);
    }
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(nvmlDevice_t device, workload_current_t *out) {
    REQUIRE(out);
    if (out->version != STRUCT_VERSION(*out, 1u)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    ENTER(nvmlDeviceGetWorkloadPowerProfiles);
    if (!gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED;
    fill(&out->profiles, PROFILES);
    load_mask(gpu, &out->requested);
    fill(&out->enforced, enforced(LOAD(gpu->workload_profiles[0])));
    return NVML_SUCCESS;
}

static nvmlReturn_t update(nvmlDevice_t device, const mask255_t *change, unsigned int operation) {
    ENTER_SETTER(nvmlDeviceSetWorkloadPowerProfiles);
    if (!gpu->has_power_smoothing[0]) return NVML_ERROR_NOT_SUPPORTED;
    if (operation > OPERATION_OVERWRITE || (change->mask[0] & ~PROFILES)) return NVML_ERROR_INVALID_ARGUMENT;
    mask255_t mask;
    load_mask(gpu, &mask);
    for (int i = 0; i < 8; i++) {
        if (operation == OPERATION_SET) mask.mask[i] |= change->mask[i];
        else if (operation == OPERATION_CLEAR) mask.mask[i] &= ~change->mask[i];
        else mask.mask[i] = change->mask[i];
    }
    store_mask(gpu, &mask);
    return leave();
}

EXPORT nvmlReturn_t nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1(nvmlDevice_t device, workload_update_t *change) {
    REQUIRE(change); /* this structure has no version */
    return update(device, &change->profiles, change->operation);
}

EXPORT nvmlReturn_t nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(nvmlDevice_t device, workload_requested_t *set) {
    REQUIRE(set);
    if (set->version != STRUCT_VERSION(*set, 1u)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return update(device, &set->requested, OPERATION_SET);
}

EXPORT nvmlReturn_t nvmlDeviceWorkloadPowerProfileClearRequestedProfiles(nvmlDevice_t device, workload_requested_t *set) {
    REQUIRE(set);
    if (set->version != STRUCT_VERSION(*set, 1u)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return update(device, &set->requested, OPERATION_CLEAR);
}
