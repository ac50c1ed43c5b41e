// Fuzzes the C interface of the CPU library: valid problems of every entry, whose results are compared with a reference that is
// written out here from adabm.h (conv2d.h, entries.h), and the same problems with one thing wrong (wrong.h), which must be refused without
// a byte written.
//
// What happens is decided by the bytes of the input alone: the first one says which target and whether something is wrong. Every array
// lies beside pages that may not be touched (guarded.h). With clang this is a target of libFuzzer (-fsanitize=fuzzer), which looks for
// inputs that reach code not reached before; with -DADABM_FUZZ_MAIN it has a main of its own, which draws them:
//
//   abi SEED SECONDS [MOST_INPUTS] [wrong]   draws inputs, with `wrong` those with something wrong alone
//   abi FILE ...                             tries the inputs of these files; a file may hold many, each after its length in two bytes, and
//                                            is then called NAME.inputs
#include "entries.h"

namespace {

constexpr int kWrong = 0x80;  // the bit of the first byte that asks for a broken call

struct Target {
  const char* name;
  void (*run)(Input&, bool broken);
  long inputs;
  Calls made;
};

Target targets[] = {
    {"conv2d_plain", [](Input& in, bool broken) { fuzz_conv2d(in, kPlain, broken); }, 0, {}},
    {"conv2d_geometry", [](Input& in, bool broken) { fuzz_conv2d(in, kGeneral, broken); }, 0, {}},
    {"conv2d_depthwise", [](Input& in, bool broken) { fuzz_conv2d(in, kDepthwise, broken); }, 0, {}},
    {"pack", fuzz_pack, 0, {}},
    {"quantize", fuzz_quantize, 0, {}},
    {"depths", fuzz_depths, 0, {}},
    {"interpolate", fuzz_interpolate, 0, {}},
    {"rest", [](Input& in, bool) { fuzz_rest(in); }, 0, {}},
};
constexpr int kTargets = sizeof targets / sizeof *targets;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  const unsigned first = in.take();
  Target& target = targets[first % kTargets];
  calls = {};
  target.run(in, first & kWrong);
  target.inputs++, target.made.computed += calls.computed, target.made.refused += calls.refused;
  return 0;
}

#ifdef ADABM_FUZZ_MAIN
#include <chrono>
#include <csignal>
#include <random>

namespace {

std::vector<uint8_t> running;

// Whatever ends the process leaves its input behind.
void keep(int number) {
  if (FILE* file = std::fopen("abi.failed", "wb")) std::fwrite(running.data(), 1, running.size(), file), std::fclose(file);
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void run() { LLVMFuzzerTestOneInput(running.data(), running.size()); }

bool run_file(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) return std::perror(path.c_str()), false;
  std::vector<uint8_t> held;
  for (int byte; (byte = std::fgetc(file)) != EOF;) held.push_back(static_cast<uint8_t>(byte));
  std::fclose(file);
  const std::string many = ".inputs";
  if (path.size() < many.size() || path.compare(path.size() - many.size(), many.size(), many)) return running = held, run(), true;
  for (size_t at = 0; at + 2 <= held.size();) {
    const size_t end = std::min(held.size(), at + 2 + (held[at] | held[at + 1] << 8));
    running.assign(held.begin() + at + 2, held.begin() + end), run();
    at = end;
  }
  return true;
}

void print_counts() {
  std::printf("target inputs computed refused\n");
  for (const Target& t : targets) std::printf("%s %ld %ld %ld\n", t.name, t.inputs, t.made.computed, t.made.refused);
  const char* const names[] = {"auto", "scalar", "neon", "avx2", "avxvnni", "avx512vnni", "amx"};
  for (int isa = 0; isa < ADABM_ISA_COUNT; isa++) std::printf("isa %s %ld\n", names[isa], calls_of_isa[isa]);
}

}  // namespace

int main(int count, char** arguments) {
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(number, keep);
  char* rest = nullptr;
  const unsigned long long seed = count > 1 ? std::strtoull(arguments[1], &rest, 10) : 0;
  if (count < 2 || (count == 2 && !*rest)) return std::fprintf(stderr, "usage: abi SEED SECONDS [MOST_INPUTS] [wrong], or abi FILE ...\n"), 2;
  if (*rest) {
    for (int i = 1; i < count; i++)
      if (!run_file(arguments[i])) return 2;
    return print_counts(), 0;
  }
  std::mt19937_64 random(seed);
  const long most = count > 3 ? std::atol(arguments[3]) : LONG_MAX;
  const bool wrong = count > 4 && !std::strcmp(arguments[4], "wrong");
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(arguments[2]));
  for (long inputs = 0; inputs < most && (inputs % 64 || std::chrono::steady_clock::now() < end); inputs++) {
    running.resize(64 + random() % 448 / 8 * 8);
    for (size_t at = 0; at < running.size(); at += 8) {
      const uint64_t bytes = random();
      std::memcpy(running.data() + at, &bytes, 8);
    }
    if (wrong) running[0] |= kWrong;
    run();
  }
  print_counts();
}
#endif
