// CUDA kernels of non-maximum suppression. Boxes, sorted by decreasing score, are processed in strips: first
// all overlaps of the strip's boxes with the boxes that follow are computed, one bit each, then one block
// goes through the strip and drops the boxes that its kept boxes overlap. Free of torch.
#pragma once

#include <cstdint>

#include "common/box_overlap.h"
#include "cuda/grid.cuh"

namespace dcn_det {

constexpr int kWordBits = 64;  // boxes per word, one bit each
// Words of boxes per strip: limits the memory for overlaps to 512 bytes per box, and lets max_keep save work.
constexpr int kStripWords = 64;
constexpr int kKeepThreads = 512;
constexpr int kLoads = 8;  // loads of a thread that are in flight together

// sorted = boxes[order]. Scores are sorted already; boxes whose score is NaN are marked as dropped.
template <typename A>
__global__ void gather_kernel(const A* boxes, const A* sorted_scores, const int64_t* labels,
                              const int64_t* order, int64_t count, Box<A>* sorted, int64_t* sorted_labels,
                              Word* dropped) {
  for (int64_t i = first_thread(); i < count; i += all_threads()) {
    const A* box = boxes + 4 * order[i];
    sorted[i] = {box[0], box[1], box[2], box[3]};
    if (labels != nullptr) sorted_labels[i] = labels[order[i]];
    if (sorted_scores[i] != sorted_scores[i]) atomicOr(dropped + i / kWordBits, Word(1) << (i % kWordBits));
  }
}

// The strip that starts at box first_word * kWordBits.
struct Strip {
  int64_t count;       // number of all boxes
  int64_t first_word;  // of the strip
  int64_t words;       // from the strip's first word to the last of all
  int64_t limit;       // number of boxes to keep

  DCN_DET_INLINE int64_t first_box(int64_t word) const { return (first_word + word) * kWordBits; }
  // Boxes in a word; the last word may be partial.
  DCN_DET_INLINE int boxes_in(int64_t word) const {
    const int64_t left = count - first_box(word);
    return left < kWordBits ? static_cast<int>(left) : kWordBits;
  }
};

// overlaps[box of the strip][word]: bits of the word's boxes that follow the box and overlap it by more than
// the threshold. One block of kWordBits threads per word (x) and word of the strip (y); words before the
// box's own are not written.
template <typename A>
__global__ void overlap_kernel(Strip strip, const Box<A>* boxes, const int64_t* labels, A threshold,
                               const Word* dropped, const int64_t* kept_count, Word* overlaps) {
  __shared__ Box<A> columns[kWordBits];
  __shared__ A column_areas[kWordBits];
  __shared__ int64_t column_labels[kWordBits];
  const int64_t row_word = blockIdx.y, column_word = blockIdx.x;
  if (column_word < row_word || *kept_count >= strip.limit) return;

  const int thread = threadIdx.x, column_count = strip.boxes_in(column_word);
  if (thread < column_count) {
    const int64_t column = strip.first_box(column_word) + thread;
    columns[thread] = boxes[column];
    column_areas[thread] = area_of(boxes[column]);
    if (labels != nullptr) column_labels[thread] = labels[column];
  }
  __syncthreads();
  if (thread >= strip.boxes_in(row_word)) return;

  Word bits = 0;
  if ((dropped[strip.first_word + row_word] >> thread & 1) == 0) {
    const int64_t row = strip.first_box(row_word) + thread;
    const Box<A> box = boxes[row];
    const A area = area_of(box);
    const int64_t label = labels != nullptr ? labels[row] : 0;
    for (int i = column_word == row_word ? thread + 1 : 0; i < column_count; ++i) {
      if (labels != nullptr && column_labels[i] != label) continue;
      if (overlap_may_exceed(threshold, box, area, columns[i], column_areas[i]) &&
          overlap_exceeds(threshold, box, area, columns[i], column_areas[i])) {
        bits |= Word(1) << i;
      }
    }
  }
  overlaps[(row_word * kWordBits + thread) * strip.words + column_word] = bits;
}

// Appends the strip's kept boxes, as indices into the unsorted boxes, and drops the later boxes that they
// overlap. One block.
static __global__ void keep_kernel(Strip strip, int64_t strip_words, const Word* overlaps,
                                   const int64_t* order, Word* dropped, int64_t* kept, int64_t* kept_count) {
  __shared__ Word within[kWordBits];  // overlaps among the boxes of one word
  __shared__ Word chosen;
  const int thread = threadIdx.x;
  int64_t found = *kept_count;
  for (int64_t word = 0; word < strip_words && found < strip.limit; ++word) {
    const Word* rows = overlaps + word * kWordBits * strip.words;
    const int row_count = strip.boxes_in(word);
    if (thread < row_count) within[thread] = rows[thread * strip.words + word];
    __syncthreads();
    if (thread == 0) {
      Word gone = dropped[strip.first_word + word], keep = 0;
      for (int i = 0; i < row_count; ++i) {
        if ((gone >> i & 1) == 0) {
          keep |= Word(1) << i;
          gone |= within[i];
        }
      }
      chosen = keep;
    }
    __syncthreads();
    const Word keep = chosen;
    if (thread < row_count && (keep >> thread & 1) != 0) {
      const int64_t place = found + __popcll(keep & ((Word(1) << thread) - 1));
      if (place < strip.limit) kept[place] = order[strip.first_box(word) + thread];
    }
    found += __popcll(keep);
    for (int64_t later = word + 1 + thread; later < strip.words; later += blockDim.x) {
      Word bits = 0;
      int row = 0;
      for (Word left = keep; left != 0;) {
        Word loaded[kLoads];
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (left != 0) row = __ffsll(static_cast<long long>(left)) - 1;  // else the last row once more
          left &= left - 1;
          loaded[i] = rows[row * strip.words + later];
        }
#pragma unroll
        for (int i = 0; i < kLoads; ++i) bits |= loaded[i];
      }
      if (bits != 0) dropped[strip.first_word + later] |= bits;
    }
  }
  __syncthreads();  // all threads have read the count
  if (thread == 0) *kept_count = found < strip.limit ? found : strip.limit;
}

// Memory that the kernels access. Only the labels may be null.
template <typename A>
struct NmsMemory {
  const A* boxes;          // (count, 4)
  const A* sorted_scores;  // decreasing, NaN anywhere
  const int64_t* labels;
  const int64_t* order;    // of the sorted scores
  Box<A>* sorted;          // (count,)
  int64_t* sorted_labels;  // (count,)
  Word* dropped;           // (words of all boxes,), zero
  Word* overlaps;          // (boxes of a strip, words of all boxes)
  int64_t* kept;           // (limit,)
  int64_t* kept_count;     // one zero
};

// Runs the whole algorithm, with calls of launch(blocks in x, blocks in y, threads, kernel, arguments...).
template <typename A, typename Launch>
void launch_nms(const NmsMemory<A>& memory, int64_t count, int64_t limit, A threshold, int64_t strip_words,
                const Launch& launch) {
  const int64_t words = (count + kWordBits - 1) / kWordBits;
  launch(blocks_for(count), 1u, kThreads, &gather_kernel<A>, memory.boxes, memory.sorted_scores,
         memory.labels, memory.order, count, memory.sorted, memory.sorted_labels, memory.dropped);
  for (int64_t first = 0; first < words; first += strip_words) {
    const Strip strip{count, first, words - first, limit};
    const int64_t own_words = strip.words < strip_words ? strip.words : strip_words;
    launch(static_cast<unsigned>(strip.words), static_cast<unsigned>(own_words), kWordBits,
           &overlap_kernel<A>, strip, memory.sorted, memory.sorted_labels, threshold, memory.dropped,
           memory.kept_count, memory.overlaps);
    launch(1u, 1u, kKeepThreads, &keep_kernel, strip, own_words, memory.overlaps, memory.order,
           memory.dropped, memory.kept, memory.kept_count);
  }
}

}  // namespace dcn_det
