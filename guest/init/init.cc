// lydian-init: PID 1 of a container. It reaps processes whose parents are gone, and nothing else: the main
// process and exec'd ones are children of the spawner. It ends with the spawner (PDEATHSIG), and the kernel
// then ends all the rest. Freestanding: no libc, no heap; it must run in any image.

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "lydian-init knows x86-64 and arm64"
#endif

namespace {

#if defined(__x86_64__)
constexpr long kExit = 231, kWait4 = 61, kPrctl = 157, kSigprocmask = 14, kSigtimedwait = 128;

long Call(long number, long a, long b, long c, long d) {
  long result;
  register long r10 asm("r10") = d;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
               : "rcx", "r11", "memory");
  return result;
}
#else
constexpr long kExit = 94, kWait4 = 260, kPrctl = 167, kSigprocmask = 135, kSigtimedwait = 137;

long Call(long number, long a, long b, long c, long d) {
  register long x8 asm("x8") = number;
  register long x0 asm("x0") = a;
  register long x1 asm("x1") = b;
  register long x2 asm("x2") = c;
  register long x3 asm("x3") = d;
  asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
  return x0;
}
#endif

constexpr long kSetParentDeathSignal = 1, kSetDumpable = 4, kSigKill = 9, kSigBlock = 0, kNoHang = 1;
constexpr unsigned long kChildSignal = 1UL << (17 - 1);

long Address(const void* p) { return reinterpret_cast<long>(p); }

}  // namespace

extern "C" [[noreturn]] void _start() {
  Call(kPrctl, kSetParentDeathSignal, kSigKill, 0, 0);
  Call(kPrctl, kSetDumpable, 0, 0, 0);  // so that no process of the container can trace it
  // Blocked and waited for: a child that ends between the reaping and the wait stays pending, so none is
  // missed.
  unsigned long set = kChildSignal;
  Call(kSigprocmask, kSigBlock, Address(&set), 0, sizeof set);
  while (true) {
    while (Call(kWait4, -1, 0, kNoHang, 0) > 0) {
    }
    Call(kSigtimedwait, Address(&set), 0, 0, sizeof set);
  }
  Call(kExit, 0, 0, 0, 0);
  __builtin_unreachable();
}
