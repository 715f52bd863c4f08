/*
 * Lets Debian's User-mode Linux run on a host with AMX, for the test that needs its hostfs: PTRACE_SETREGSET wants
 * the whole register set there, the kernel passes the first 2696 bytes of it. Preloaded into the kernel.
 */
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202

static char whole[65536];
static size_t whole_size;

long ptrace(enum __ptrace_request request, ...)
{
	struct iovec iov = { whole, sizeof(whole) }, *given;
	long pid, word, result;
	void *address, *data;
	va_list rest;

	va_start(rest, request);
	pid = va_arg(rest, int);
	address = va_arg(rest, void *);
	data = va_arg(rest, void *);
	va_end(rest);

	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
		given = data;
		if (whole_size == 0 && syscall(SYS_ptrace, (long)PTRACE_GETREGSET, pid, address, &iov) == 0)
			whole_size = iov.iov_len;
		if (given->iov_len < whole_size) {
			memset(whole, 0, whole_size);
			memcpy(whole, given->iov_base, given->iov_len);
			iov.iov_len = whole_size;
			data = &iov;
		}
	}
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		result = syscall(SYS_ptrace, (long)request, pid, address, &word);
		return result == 0 ? word : result;
	}
	return syscall(SYS_ptrace, (long)request, pid, address, data);
}
