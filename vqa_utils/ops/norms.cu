// One block per row of up to 8,192 values; a thread takes eight at a time
#define EACH_EIGHT(n)                                                                       \
    _Pragma("unroll") for (int n = 0, eight = threadIdx.x; n < 4; n++, eight += blockDim.x) \
        if (eight < width / 8)

// sum = x + delta (where there is one) and its norm, in fp16 and, where it is asked for, the rest
// that fp16 has rounded away. The RMS norm, or where there is a bias the layer norm. x [rows, width]
extern "C" __global__ void add_norm(const float* x, const fp16* delta, const float* weight,
                                    const float* bias, float* sum, fp16* normed, fp16* rest,
                                    int width, float eps) {
    int first = blockIdx.x * (width / 8);
    Wide values[4];
    float total = 0.0f, squares = 0.0f;
    EACH_EIGHT(n) {
        values[n] = load(x, first + eight);
        if (delta) {
            Wide added = widened(load(delta, first + eight));
            for (int i = 0; i < 8; i++) values[n].at[i] += added.at[i];
            store(sum, first + eight, values[n]);
        }
        for (int i = 0; i < 8; i++) total += values[n].at[i];
    }
    float mean = bias ? sum_over_block(total) / width : 0.0f;
    EACH_EIGHT(n)
        for (int i = 0; i < 8; i++) squares += (values[n].at[i] - mean) * (values[n].at[i] - mean);
    float rstd = rsqrtf(sum_over_block(squares) / width + eps);
    EACH_EIGHT(n) {
        Wide scale = load(weight, eight), shift = {};
        if (bias) shift = load(bias, eight);
        for (int i = 0; i < 8; i++)
            values[n].at[i] = (values[n].at[i] - mean) * rstd * scale.at[i] + shift.at[i];
        Eight narrow_values = narrowed(values[n]);
        store(normed, first + eight, narrow_values);
        if (!rest) continue;
        Wide kept = widened(narrow_values);
        for (int i = 0; i < 8; i++) values[n].at[i] -= kept.at[i];
        store(rest, first + eight, narrowed(values[n]));
    }
}

// out = residual + the gradient of x, in fp32 and, where it is asked for, in fp16; from the
// gradient of x's RMS norm, which is in fp16 or in fp32. x [rows, width]
extern "C" __global__ void norm_backward(const float* x, const float* weight, const fp16* grad,
                                         const float* grad_wide, const float* residual, float* out,
                                         fp16* out_narrow, int width, float eps) {
    int first = blockIdx.x * (width / 8);
    Wide values[4], scaled[4];
    float squares = 0.0f, dot = 0.0f;
    EACH_EIGHT(n) {
        Wide scale = load(weight, eight);
        values[n] = load(x, first + eight);
        scaled[n] = grad_wide ? load(grad_wide, first + eight) : widened(load(grad, first + eight));
        for (int i = 0; i < 8; i++) {
            scaled[n].at[i] *= scale.at[i];
            squares += values[n].at[i] * values[n].at[i];
            dot += values[n].at[i] * scaled[n].at[i];
        }
    }
    float rstd = rsqrtf(sum_over_block(squares) / width + eps);
    float along = sum_over_block(dot) / width * rstd * rstd;
    EACH_EIGHT(n) {
        Wide sum = load(residual, first + eight);
        for (int i = 0; i < 8; i++) sum.at[i] += rstd * (scaled[n].at[i] - values[n].at[i] * along);
        store(out, first + eight, sum);
        if (out_narrow) store(out_narrow, first + eight, narrowed(sum));
    }
}
