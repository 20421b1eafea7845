// load [experts], zero before: how many of the pairs go to each expert
extern "C" __global__ void count_loads(const i64* index, int* load, int pairs, int experts) {
    __shared__ int counts[1024];
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) counts[expert] = 0;
    __syncthreads();
    for (int pair = thread(); pair < pairs; pair += gridDim.x * blockDim.x)
        atomicAdd(&counts[index[pair]], 1);
    __syncthreads();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x)
        if (counts[expert]) atomicAdd(&load[expert], counts[expert]);
}

// order [experts]: by descending load, equal ones by their number. One thread per expert counts the
// experts before it
extern "C" __global__ void order_loads(const int* load, i64* order, int experts) {
    int expert = thread(), before = 0;
    if (expert >= experts) return;
    for (int other = 0; other < experts; other++)
        before += load[other] > load[expert] || (load[other] == load[expert] && other < expert);
    order[before] = expert;
}

// A slot from first[expert] on for each pair, in any order; counts load down to zero
extern "C" __global__ void place_pairs(const i64* index, const i64* first, int* load,
                                       i64* slot_of_pair, i64* pair_of_slot, i64* token_of_slot,
                                       int pairs, int k) {
    int pair = thread();
    if (pair >= pairs) return;
    int expert = index[pair], slot = first[expert] + atomicSub(&load[expert], 1) - 1;
    slot_of_pair[pair] = slot;
    pair_of_slot[slot] = pair;
    token_of_slot[slot] = pair / k;
}
