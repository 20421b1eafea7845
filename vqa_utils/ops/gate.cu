// h [rows, width] = silu(gate) * up * weight, of gate_up [rows, 2 * width]; one thread per
// eight values
extern "C" __global__ void gate(const fp16* gate_up, const float* weights, const i64* pair, fp16* h,
                                int rows, int width) {
    int eights = width / 8, row = thread() / eights, eight = thread() % eights;
    if (row >= rows) return;
    Eight g = load(gate_up, row * 2 * eights + eight),
          u = load(gate_up, (row * 2 + 1) * eights + eight), out;
    float weight = weights[pair[row]];
    for (int i = 0; i < 8; i++) {
        float x = wide(g.at[i]);
        out.at[i] = narrow(x / (1.0f + __expf(-x)) * wide(u.at[i]) * weight);
    }
    store(h, row * eights + eight, out);
}

// The backward of `gate`, in place of gate_up; back [rows, width] is h's gradient. dots [rows] =
// <back, silu(gate) * up>, the weight's gradient. One warp per row
extern "C" __global__ void gate_backward(fp16* gate_up, const fp16* back, const float* weights,
                                         const i64* pair, float* dots, int rows, int width) {
    int eights = width / 8, row = thread() / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    float weight = weights[pair[row]], dot = 0.0f;
    for (int eight = lane; eight < eights; eight += 32) {
        int first = row * 2 * eights + eight;
        Eight g = load(gate_up, first), u = load(gate_up, first + eights),
              b = load(back, row * eights + eight);
        for (int i = 0; i < 8; i++) {
            float x = wide(g.at[i]), y = wide(u.at[i]), grad = wide(b.at[i]),
                  s = 1.0f / (1.0f + __expf(-x));
            dot += grad * x * s * y;
            grad *= weight;
            g.at[i] = narrow(grad * y * s * (1.0f + x * (1.0f - s)));
            u.at[i] = narrow(grad * x * s);
        }
        store(gate_up, first, g);
        store(gate_up, first + eights, u);
    }
    dot = sum_over(32, dot);
    if (lane == 0) dots[row] = dot;
}
