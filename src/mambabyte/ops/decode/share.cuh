// What a thread block of the persistent kernel owns, what it is given, what it keeps in shared memory, and its mail.
//
// From the host, beside what parts.cuh needs: COLUMNS, the most columns of a launch, at most 8; STAGES of the ring;
// CHANNEL_TILES, OUT_TILES, SELECT_OWN and HEAD_TILES, the most tiles of a block; SHARED_BYTES, its shared memory.
#pragma once

static_assert(COLUMNS <= 8, "the rows of a fragment that are not doubled");
constexpr int WARPS = 16, THREADS = 32 * WARPS;  // beside the copying warp
constexpr int STAGE_BYTES = WARPS * BLOCK_BYTES;
constexpr int CHANNELS = CHANNEL_TILES * TILE;
constexpr int PITCH = D_PITCH + 8;  // of the normalised columns: rows fall on different banks
constexpr int NORM_BYTES = (1 + BIAS) * D_PITCH * 4;
__device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int SUMS = larger(larger(2 * CHANNEL_TILES * D_SLICES, HEAD_TILES * D_SLICES),
                            larger(SELECT_OWN, OUT_TILES) * E_SLICES) * COLUMNS * TILE;

// Everything that does not change between launches. Weights are blocks [layer][tile][slice]; in `in` the tiles of x and
// z alternate. u and y hold two channels in a piece of mail, selected and stream one float.
struct Model {
    const unsigned char *in, *select, *out, *head;
    const Channels* channels;        // [layer][E_TILES]
    const float *norms, *embedding;  // [layers + 1][1 + BIAS][D_PITCH], [V][D_PITCH]
    float *ssm, *conv;               // [slot][layer][E][N_PITCH], [slot][layer][E][CONV_STATE]
    u64 *u, *y, *selected, *stream;  // see mail_place; [COLUMNS][SELECT_PITCH]; see stream_place
    float* logits;                   // [COLUMNS][outputs]
    int layers, outputs;
};

// The columns of a launch. Those of a row are neighbours, in the order of time.
struct Batch {
    int columns, rows;
    int id[COLUMNS], after[COLUMNS];      // of a column: its byte, and the slot that its state goes to
    int begin[COLUMNS], place[COLUMNS];   // the slot that its row starts from, and how many columns of it come before
    int first[COLUMNS + 1];               // of a row: its first column

    // The numbers, known to the compiler where they can be only one.
    __device__ __forceinline__ int width() const { return COLUMNS == 1 ? 1 : columns; }
    __device__ __forceinline__ int height() const { return COLUMNS == 1 ? 1 : rows; }
    __device__ __forceinline__ int first_of(int row) const { return COLUMNS == 1 ? row : first[row]; }
    __device__ __forceinline__ int place_of(int column) const { return COLUMNS == 1 ? 0 : place[column]; }
};

struct __align__(128) Shared {
    u64 full[STAGES], empty[STAGES], own_full[2], own_empty[2];
    __align__(128) unsigned char ring[STAGES][STAGE_BYTES];
    Channels channels[2][CHANNEL_TILES];
    __align__(16) float norm[2][(1 + BIAS) * D_PITCH];
    __align__(16) io_t columns[COLUMNS][PITCH];
    float sums[SUMS], slices[2][COLUMNS][D_SLICES];
    float x[COLUMNS][CHANNELS], u[COLUMNS][CHANNELS], z[COLUMNS][CHANNELS], dt[COLUMNS][CHANNELS];
    __align__(16) float selected[COLUMNS][SELECT_PITCH];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "what the host has counted");

struct Range {
    int first, count;
    __device__ Range(int block, int most, int all) : first(block * most), count(max(0, min(most, all - first))) {}
};

// Where a thread block is in its work: what it owns, and its place in the ring.
struct Place {
    Range channels, out, select, head;
    int warp, lane, stage = 0;
    unsigned parity = 0;

    __device__ Place()
        : channels(blockIdx.x, CHANNEL_TILES, E_TILES), out(blockIdx.x, OUT_TILES, D_TILES),
          select(gridDim.x - 1 - blockIdx.x, SELECT_OWN, SELECT_TILES), head(blockIdx.x, HEAD_TILES, V_TILES),
          warp(threadIdx.x / 32), lane(threadIdx.x % 32) {}
    __device__ void next_stage() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

__device__ __forceinline__ void meet() { block_sync(1, THREADS); }

// Where the mail of a pair of channels lies: [slice][16 channels][column][pair of 8 channels][8 channels of 16], so that
// a warp that reads a slice of 8 columns reads whole lines, and a lane what `take_block` would give it.
__device__ __forceinline__ int mail_place(int column, int k) {
    int row = k / 16 * 8 + column;
    return row * 8 + k % 8 / 2 * 2 + k % 16 / 8;
}

// Where that of a float of the stream lies: [slice][half of a quad][quad][2].
__device__ __forceinline__ i64 stream_place(int column, int k) {
    return (i64)column * D_PITCH + k / SLICE * SLICE + k % 4 / 2 * (SLICE / 2) + k % SLICE / 4 * 2 + k % 2;
}

// COUNT pairs of neighbouring pieces of mail, `stride` pieces apart, once they all have this tag. Of the pieces those
// from `count` on, at least 1, are nobody's and read as zeros.
template <int COUNT>
__device__ __forceinline__ void open_mail(uint2 (&data)[COUNT], const u64* mail, int stride, int count, unsigned tag) {
    unsigned wrong;
    do {
        u64 a[COUNT], b[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) get(mail + (2 * i < count ? i : 0) * stride, a[i], b[i]);
        wrong = 0;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            bool second = 2 * i + 1 < count;
            wrong |= (unsigned)(a[i] >> 32) ^ tag | (second ? (unsigned)(b[i] >> 32) ^ tag : 0);
            data[i] = make_uint2(2 * i < count ? (unsigned)a[i] : 0, second ? (unsigned)b[i] : 0);
        }
        if (wrong) look_again();
    } while (wrong);
}
