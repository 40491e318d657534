/* A library to preload: a process, and all that it starts, sees 16 processors, and may run on all of them.
 *
 *     cc -shared -fPIC -o many_cores.so many_cores.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { CORES = 16 };

long sysconf(int name) {
  static long (*real)(int);
  if (name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF) return CORES;
  if (!real) real = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
  return real(name);
}

int get_nprocs(void) { return CORES; }

int get_nprocs_conf(void) { return CORES; }

int sched_getaffinity(pid_t process, size_t size, cpu_set_t *set) {
  (void)process;
  CPU_ZERO_S(size, set);
  for (int core = 0; core < CORES; core++) CPU_SET_S(core, size, set);
  return 0;
}
