// Kernels of non-maximum suppression, launched as in nms.cu.
#include "arguments.h"

#include "cuda/nms.cuh"

using namespace dcn_det;

// Scores are sorted, and `order` holds their indices.
extern "C" void nms(int64_t dtype, int64_t count, int64_t limit, double threshold, int64_t strip_words,
                    const void* boxes, const void* sorted_scores, const int64_t* labels, const int64_t* order,
                    int64_t* kept, int64_t* kept_count) {
  const int64_t words = (count + kWordBits - 1) / kWordBits;
  const int64_t most_words = words < strip_words ? words : strip_words;
  std::vector<int64_t> sorted_labels = scratch<int64_t>(count, false);
  std::vector<Word> dropped = scratch<Word>(words, true);
  std::vector<Word> overlaps = scratch<Word>(most_words * kWordBits * words, false);
  const auto run = [&]<typename A>(A bound) {
    std::vector<Box<A>> sorted(count);
    host_tensor(sorted.data(), count * sizeof(Box<A>), true, false);
    const NmsMemory<A> memory{static_cast<const A*>(boxes),
                              static_cast<const A*>(sorted_scores),
                              labels,
                              order,
                              sorted.data(),
                              labels == nullptr ? nullptr : sorted_labels.data(),
                              dropped.data(),
                              overlaps.data(),
                              kept,
                              kept_count};
    launch_nms(memory, count, limit, bound, strip_words,
               [](unsigned x, unsigned y, unsigned threads, auto kernel, auto... arguments) {
                 cuda_on_host::launch({x, y}, threads, kernel, arguments...);
               });
  };
  if (dtype == 1) {
    run(threshold_as<double>(threshold));
  } else {
    run(threshold_as<float>(threshold));
  }
}
