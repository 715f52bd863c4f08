/* The least VMM in C: what the benches of the kvm engine stand beside. It boots a payload by the Linux 64-bit
 * protocol with the same ioctls, and prints what the payload prints.
 *
 *     peer PAYLOAD COMMAND-LINE [silent|answered]
 *     peer answer KICK-FD CALL-FD
 *
 * "silent": writes to 0xd0000000 signal an eventfd (ioeventfd). "answered": also, a process answers each signal on
 * another eventfd (which is all that the second form does), and that is the MSI vector 48 on APIC id 0 (irqfd).
 */
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM (64ul << 20)
#define DOORBELL 0xd0000000
#define VECTOR 48
#define MSI_GSI 24

static char *ram;
static pid_t answerer;

static int must(int result, const char *what)
{
    if (result < 0)
        err(1, "%s", what);
    return result;
}

static uint64_t load(const char *path, const char *cmdline)
{
    FILE *file = fopen(path, "rb");
    Elf64_Ehdr header;
    if (!file || fread(&header, sizeof header, 1, file) != 1)
        err(1, "%s", path);
    for (int i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr part;
        fseek(file, header.e_phoff + i * sizeof part, SEEK_SET);
        if (fread(&part, sizeof part, 1, file) != 1)
            err(1, "%s", path);
        fseek(file, part.p_offset, SEEK_SET);
        if (part.p_type == PT_LOAD && fread(ram + part.p_paddr, 1, part.p_filesz, file) != part.p_filesz)
            err(1, "%s", path);
    }
    fclose(file);
    strcpy(ram + 0x20000, cmdline);
    *(uint32_t *)(ram + 0x7000 + 0x228) = 0x20000;
    return header.e_entry;
}

static void set_registers(int vcpu, uint64_t entry)
{
    uint64_t *pml4 = (void *)(ram + 0x9000), *pdpt = pml4 + 512, *directory = pdpt + 512;
    pml4[0] = 0xa003;
    pdpt[0] = 0xb003;
    for (uint64_t i = 0; i < 512; i++)
        directory[i] = i << 21 | 0x83;
    struct kvm_sregs sregs;
    must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    struct kvm_segment code = {0, ~0u, 0x10, 11, 1, 0, 0, 1, 1, 0, 1, 0, 0}, rest = code;
    rest.selector = 0x18, rest.type = 3, rest.l = 0, rest.db = 1;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = rest;
    sregs.cr0 = 0x80000011, sregs.cr3 = 0x9000, sregs.cr4 = 0x20, sregs.efer = 0x500;
    must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = entry, .rsi = 0x7000, .rsp = 0x8ff0, .rflags = 2};
    must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static int answer(int kick, int call)
{
    for (uint64_t n; read(kick, &n, sizeof n) == sizeof n;) {
        n = 1;
        if (write(call, &n, sizeof n) != sizeof n)
            err(1, "call");
    }
    return 1;
}

static void wire(int vm, int answered)
{
    int kick = must(eventfd(0, 0), "eventfd"), call = must(eventfd(0, EFD_NONBLOCK), "eventfd");
    struct kvm_ioeventfd doorbell = {.addr = DOORBELL, .len = 0, .fd = kick};
    must(ioctl(vm, KVM_IOEVENTFD, &doorbell), "KVM_IOEVENTFD");
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry;
    } routing = {.head.nr = 1};
    routing.entry.gsi = MSI_GSI;
    routing.entry.type = KVM_IRQ_ROUTING_MSI;
    routing.entry.u.msi.address_lo = 0xfee00000;
    routing.entry.u.msi.data = VECTOR;
    must(ioctl(vm, KVM_SET_GSI_ROUTING, &routing), "KVM_SET_GSI_ROUTING");
    struct kvm_irqfd irqfd = {.fd = call, .gsi = MSI_GSI};
    must(ioctl(vm, KVM_IRQFD, &irqfd), "KVM_IRQFD");
    if (!answered)
        return;
    answerer = must(fork(), "fork");
    if (!answerer)
        _exit(answer(kick, call));
}

static void copy_cpuid(int kvm, int vcpu)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + 256 * sizeof cpuid->entries[0]);
    cpuid->nent = 256;
    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
    must(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
}

static int run(int vcpu, struct kvm_run *state)
{
    for (;;) {
        must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
        switch (state->exit_reason) {
        case KVM_EXIT_IO: {
            unsigned char *value = (unsigned char *)state + state->io.data_offset;
            if (state->io.direction == KVM_EXIT_IO_IN)
                *value = state->io.port == 0x3fd ? 0x20 : 0xff;
            else if (state->io.port == 0x3f8)
                putchar(*value);
            else if (state->io.port == 0xf4)
                return *value;
            break;
        }
        case KVM_EXIT_MMIO:
            break;
        default: {
            struct kvm_regs regs;
            must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
            fflush(stdout);
            errx(3, "exit reason %u, suberror %u, RIP %#llx", state->exit_reason, state->internal.suberror, regs.rip);
        }
        }
    }
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "answer"))
        return answer(atoi(argv[2]), atoi(argv[3]));
    if (argc < 3)
        errx(2, "peer PAYLOAD COMMAND-LINE [silent|answered]");
    int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
    must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct kvm_userspace_memory_region slot = {0, 0, 0, RAM, (uint64_t)ram};
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    copy_cpuid(kvm, vcpu);
    struct kvm_run *state = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    set_registers(vcpu, load(argv[1], argv[2]));
    if (argc > 3)
        wire(vm, !strcmp(argv[3], "answered"));
    int status = run(vcpu, state);
    if (answerer)
        kill(answerer, SIGKILL);
    return status;
}
