// Turns the heads of x [rows, heads, d] where they are, with of_row values from row to row and d a
// multiple of 8; cos and sin [rows, d] with equal halves. One thread per four values and their
// partners in the other half
extern "C" __global__ void rotate(fp16* x, int of_row, const float* cos, const float* sin, int rows,
                                  int heads, int d) {
    struct alignas(8) Half { fp16 at[4]; };
    int fours = d / 8, head = thread() / fours, four = thread() % fours, row = head / heads;
    if (row >= rows) return;
    Half* first = reinterpret_cast<Half*>(x + row * of_row + head % heads * d) + four;
    Half* second = first + fours;
    Four c = reinterpret_cast<const Four*>(cos + row * d)[four],
         s = reinterpret_cast<const Four*>(sin + row * d)[four];
    Half a = *first, b = *second;
    for (int i = 0; i < 4; i++) {
        float u = wide(a.at[i]), v = wide(b.at[i]);
        a.at[i] = narrow(u * c.at[i] - v * s.at[i]);
        b.at[i] = narrow(v * c.at[i] + u * s.at[i]);
    }
    *first = a;
    *second = b;
}
