// What a thread has of a row's heads: eight values of one of the q, k and v that lie side by side,
// d = 8 * lanes values each with lanes a power of two up to 32. Its partner in the other half of
// the head is `lanes / 2` threads away
struct Head {
    // number: among q's heads, or among those of k or v; kv: 0 for q, 1 for k, 2 for v
    int row, number, lane, lanes, kv;
    bool is_there;
    Wide x, cos, sin;
    const float* weight;
    float rstd;
    __device__ Head(const fp16* qkv, const float* q_weight, const float* k_weight, const fp16* coss,
                    const fp16* sins, int rows, int q_heads, int kv_heads, int lanes, float eps)
        : lanes(lanes) {
        int all = q_heads + 2 * kv_heads, head = thread() / lanes;
        is_there = head < rows * all;
        // Threads past the end compute again what is there, and store nothing
        head = min(head, rows * all - 1);
        row = head / all;
        number = head % all;
        kv = number < q_heads ? 0 : 1 + (number - q_heads) / kv_heads;
        if (kv) number = (number - q_heads) % kv_heads;
        lane = threadIdx.x % lanes;
        weight = (kv ? k_weight : q_weight) + lane * 8;
        x = widened(load(qkv, head * lanes + lane));
        cos = widened(load(coss, row * lanes + lane));
        sin = widened(load(sins, row * lanes + lane));
        float squares = 0.0f;
        for (int i = 0; i < 8; i++) squares += x.at[i] * x.at[i];
        rstd = rsqrtf(sum_over(lanes, squares) / (8 * lanes) + eps);
    }
    // Turned by the angle, or back by it (sign -1)
    __device__ float turned(int i, float value, float sign) {
        float partner = __shfl_xor_sync(0xffffffff, value, lanes / 2);
        return value * cos.at[i] + (lane < lanes / 2 ? -sign : sign) * partner * sin.at[i];
    }
};

// The RMS norm and rotation of q's and k's heads. qkv [rows, q_heads + 2 * kv_heads, d], cos and
// sin [rows, d] with equal halves; q, k and v [rows, q_heads, d], k and v once for each head of q
extern "C" __global__ void heads(const fp16* qkv, const float* q_weight, const float* k_weight,
                                 const fp16* cos, const fp16* sin, fp16* q, fp16* k, fp16* v,
                                 int rows, int q_heads, int kv_heads, int lanes, float eps) {
    Head head(qkv, q_weight, k_weight, cos, sin, rows, q_heads, kv_heads, lanes, eps);
    Wide out;
    for (int i = 0; i < 8; i++) {
        float turned = head.turned(i, head.x.at[i] * head.rstd * head.weight[i], 1.0f);
        out.at[i] = head.kv == 2 ? head.x.at[i] : turned;
    }
    if (!head.is_there) return;
    int repeats = head.kv ? q_heads / kv_heads : 1,
        first = head.row * q_heads + head.number * repeats;
    fp16* to = head.kv == 0 ? q : head.kv == 1 ? k : v;
    for (int i = 0; i < repeats; i++) store(to, (first + i) * lanes + head.lane, narrowed(out));
}

// A gradient [batch, length, q_heads, d], which may lie in any order with d innermost: its strides
// in values
struct Lying {
    const fp16* at;
    int of_batch, of_row, of_head;
};

// The backward of `heads`: qkv's gradient, in qkv's order
extern "C" __global__ void heads_backward(const fp16* q, int q_batch, int q_row, int q_head,
                                          const fp16* k, int k_batch, int k_row, int k_head,
                                          const fp16* v, int v_batch, int v_row, int v_head,
                                          int length, const fp16* qkv, const float* q_weight,
                                          const float* k_weight, const fp16* cos, const fp16* sin,
                                          fp16* grad, int rows, int q_heads, int kv_heads,
                                          int lanes, float eps) {
    Head head(qkv, q_weight, k_weight, cos, sin, rows, q_heads, kv_heads, lanes, eps);
    Lying from = head.kv == 0   ? Lying{q, q_batch, q_row, q_head}
                 : head.kv == 1 ? Lying{k, k_batch, k_row, k_head}
                                : Lying{v, v_batch, v_row, v_head};
    int repeats = head.kv ? q_heads / kv_heads : 1;
    const fp16* first = from.at + head.row / length * from.of_batch +
                        head.row % length * from.of_row + head.number * repeats * from.of_head;
    Wide g = {}, out;
    for (int n = 0; n < repeats; n++) {
        Wide one = widened(load(first + n * from.of_head, head.lane));
        for (int i = 0; i < 8; i++) g.at[i] += one.at[i];
    }
    float scaled[8], mean = 0.0f;
    for (int i = 0; i < 8; i++) {
        scaled[i] = head.turned(i, g.at[i], -1.0f) * head.weight[i];
        mean += scaled[i] * head.x.at[i] * head.rstd;
    }
    mean = sum_over(lanes, mean) / (8 * lanes);
    for (int i = 0; i < 8; i++)
        out.at[i] =
            head.kv == 2 ? g.at[i] : head.rstd * (scaled[i] - head.x.at[i] * head.rstd * mean);
    if (head.is_there) store(grad, thread(), narrowed(out));
}
