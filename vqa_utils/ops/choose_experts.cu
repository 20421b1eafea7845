// The k experts with the largest logits [tokens, experts], at most 256, and the softmax over
// these. The logits are `scale` times the sum of up to three parts, whose rows lie as far apart as
// is said. One warp per token
extern "C" __global__ void route(const float* part, int apart, const float* part2, int apart2,
                                 const float* part3, int apart3, float scale, float* weights,
                                 i64* index, int tokens, int experts, int k) {
    int token = thread() / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    float values[8], largest = 0.0f, total = 0.0f, mine = 0.0f;
    int chosen = 0, is_nan = 0;
    for (int i = 0; i < 8; i++) {
        int expert = lane + 32 * i;
        values[i] = expert < experts ? part[token * apart + expert] : -INFINITY;
        if (part2 && expert < experts) values[i] += part2[token * apart2 + expert];
        if (part3 && expert < experts) values[i] += part3[token * apart3 + expert];
        values[i] *= scale;
        is_nan |= values[i] != values[i];
    }
    for (int number = 0; number < k; number++) {
        float best = -INFINITY;
        int place = lane;
        for (int i = 0; i < 8; i++)
            if (values[i] > best) best = values[i], place = lane + 32 * i;
        for (int step = 16; step; step /= 2) {
            float other = __shfl_xor_sync(0xffffffff, best, step);
            int there = __shfl_xor_sync(0xffffffff, place, step);
            if (other > best || (other == best && there < place)) best = other, place = there;
        }
        for (int i = 0; i < 8; i++)
            if (place == lane + 32 * i) values[i] = -INFINITY;
        if (number == 0) largest = best;
        float exponential = __expf(best - largest);
        total += exponential;
        if (lane == number) mine = exponential, chosen = place;
    }
    // NaN as softmax has it, so that the loss shows it
    if (__any_sync(0xffffffff, is_nan)) total = NAN;
    if (lane < k) {
        weights[token * k + lane] = mine / total;
        index[token * k + lane] = chosen;
    }
}

// The backward of `route`: the gradient of the logits. One warp per token
extern "C" __global__ void route_backward(const float* grad, const float* weights, const i64* index,
                                          float* out, int tokens, int experts, int k) {
    int token = thread() / 32, lane = threadIdx.x % 32, place = token * k + lane;
    if (token >= tokens) return;
    float weight = lane < k ? weights[place] : 0.0f, g = lane < k ? grad[place] : 0.0f;
    float mean = sum_over(32, weight * g);
    for (int expert = lane; expert < experts; expert += 32) out[token * experts + expert] = 0.0f;
    __syncwarp();
    if (lane < k) out[token * experts + index[place]] = weight * (g - mean);
}
