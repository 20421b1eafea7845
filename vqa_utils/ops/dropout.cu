// The last steps of MurmurHash3 (by Austin Appleby), which spread each bit over all
__device__ unsigned mixed(unsigned bits) {
    bits = (bits ^ bits >> 16) * 0x85ebca6bu;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
    return bits ^ bits >> 16;
}

// Dropout whose mask is a function of the seed and of a value's place: y gets, or `onto` it has
// added, x / (1 - p) where 31 bits are at least p * 2^31 = `least`, and 0 elsewhere. One thread per
// eight values
extern "C" __global__ void dropout(const fp16* x, fp16* y, int onto, int seed, int least,
                                   float scale, int eights) {
    int eight = thread();
    if (eight >= eights) return;
    Wide values = widened(load(x, eight)), out = {};
    if (onto) out = widened(load(y, eight));
    for (int i = 0; i < 8; i++) {
        unsigned bits = mixed(mixed(8 * eight + i) ^ seed);
        if ((int)(bits >> 1) >= least) out.at[i] += values.at[i] * scale;
    }
    store(y, eight, narrowed(out));
}
