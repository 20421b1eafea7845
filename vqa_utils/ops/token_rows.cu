// out [slots, width]: each token's row at k slots, which index [tokens, k] names; other slots are left
// as they are. One thread per eight values, which it reads once
extern "C" __global__ void spread_rows(const fp16* x, const i64* index, fp16* out, int tokens,
                                       int k, int width) {
    int eights = width / 8, token = thread() / eights, eight = thread() % eights;
    if (token >= tokens) return;
    Eight values = load(x, token * eights + eight);
    for (int j = 0; j < k; j++) store(out, (int)index[token * k + j] * eights + eight, values);
}

// out [tokens, width] in fp32: the sum of k rows, which index [tokens, k] names, on top of `onto`
// where there is one; one thread per eight values
extern "C" __global__ void sum_rows(const fp16* rows, const i64* index, const float* onto,
                                    float* out, int tokens, int k, int width) {
    int eights = width / 8, token = thread() / eights, eight = thread() % eights;
    if (token >= tokens) return;
    Wide sums = {};
    if (onto) sums = load(onto, token * eights + eight);
    for (int j = 0; j < k; j++) {
        Wide values = widened(load(rows, (int)index[token * k + j] * eights + eight));
        for (int i = 0; i < 8; i++) sums.at[i] += values.at[i];
    }
    store(out, token * eights + eight, sums);
}
