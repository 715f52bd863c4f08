/* From the boot protocol to main() in ring 3.
 *
 * Entered at `entry64` as the Linux 64-bit boot protocol leaves it (RSI: boot_params) or at `entry32` as PVH
 * does (EBX: hvm_start_info). Ring 0 does as little as it can, for some hosts emulate it: page tables are
 * laid out by the assembler, and main.c fills the interrupt table later from ring 3, where all memory is
 * accessible. Every page is user-accessible, SMEP and SMAP are off.
 */
#include "layout.h"

#define PRESENT_RW_USER 7
#define LARGE 0x80

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad entry32

.section .entry, "ax"
.globl entry64, entry32
.code64
entry64:
    movq %rsi, boot_info
    movl $BOOT_LINUX, boot_kind
    movl $pml4, %eax
    movq %rax, %cr3
    jmp long_mode

.code32
entry32:
    movl %ebx, boot_info
    movl $BOOT_PVH, boot_kind
    call enable_long_mode
    lgdt gdt_pointer
    ljmp $KERNEL_CS, $long_mode

enable_long_mode:
    movl %cr4, %eax
    orl $0x20, %eax /* PAE */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx /* EFER */
    rdmsr
    orl $0x100, %eax /* LME */
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax /* PG, PE */
    movl %eax, %cr0
    ret

.code64
long_mode:
    movl $boot_stack_top, %esp
    lgdt gdt_pointer
    pushq $KERNEL_CS
    pushq $1f
    lretq
1:  movl $KERNEL_DS, %eax
    movl %eax, %ss
    movl $USER_DS, %eax
    movl %eax, %ds
    movl %eax, %es
    movq %cr4, %rax
    orl $0x600, %eax /* OSFXSR, OSXMMEXCPT: SSE as the compiler likes it */
    movq %rax, %cr4
    movq %cr0, %rax
    andl $0xfffffffb, %eax /* EM off */
    orl $2, %eax /* MP */
    movq %rax, %cr0
    lidt idt_pointer
    xorl %edi, %edi
    movl $user_stack_top - 8, %esi
    movl $kernel_stack_top, %edx
    movl $start, %ecx

/* ring3(cpu, stack, ring-0 stack, function): load this CPU's TSS and call function(cpu) in ring 3. */
ring3:
    movl %edi, %ebx
    movq %rsi, %r8
    imull $TSS_SIZE, %edi, %eax
    addl $tss, %eax
    movq %rdx, 4(%rax) /* RSP0 */
    movl $io_bitmap, %edx
    subl %eax, %edx
    movw %dx, 102(%rax) /* one bitmap behind all TSSs, all zero: ring 3 may use every port */
    addl $8192, %edx
    movl %edx, %esi
    movl %ebx, %edx
    shll $4, %edx
    addl $gdt_tss, %edx
    movw %si, (%rdx)
    movw %ax, 2(%rdx)
    shrl $16, %eax
    movb %al, 4(%rdx)
    movb $0x89, 5(%rdx) /* available 64-bit TSS */
    movb %ah, 7(%rdx)
    subl $gdt, %edx
    ltr %dx
    movl %ebx, %edi
    pushq $USER_DS
    pushq %r8
    pushq $0x3002 /* IOPL 3, interrupts off */
    pushq $USER_CS
    pushq %rcx
    iretq

/* An exception: all of it on the stack, and report. Vectors with an error code have it pushed already. */
.macro exception vector, has_error=0
    .balign 16
    .if \has_error == 0
    pushq $0
    .endif
    pushq $\vector
    jmp report
.endm

.globl exceptions, interrupts, interrupts_end
    .balign 16
exceptions:
    .irp vector, 0, 1, 2, 3, 4, 5
    exception \vector
    .endr
    .balign 16
    jmp ring0_call /* 6, #UD */
    exception 7
    exception 8, 1
    exception 9
    .irp vector, 10, 11, 12
    exception \vector, 1
    .endr
    .balign 16
    jmp ring3_halt /* 13, #GP */
    exception 14, 1
    .irp vector, 15, 16
    exception \vector
    .endr
    exception 17, 1
    .irp vector, 18, 19, 20
    exception \vector
    .endr
    exception 21, 1
    .irp vector, 22, 23, 24, 25, 26, 27, 28
    exception \vector
    .endr
    exception 29, 1
    exception 30, 1
    exception 31

/* #GP in ring 3: `hlt` sleeps here until the next interrupt, with the caller's IF restored behind it. `cli` and
 * `sti` are done here where a host loses IOPL on the way to ring 3. */
#define FRAME_RIP 16
#define FRAME_RFLAGS 32
ring3_halt:
    pushq %rax
    movq FRAME_RIP(%rsp), %rax
    movb (%rax), %al
    cmpb $0xf4, %al
    je 2f
    cmpb $0xfa, %al
    je 3f
    cmpb $0xfb, %al
    je 4f
    popq %rax
    pushq $13
    jmp report
2:  sti
    hlt
    cli
    jmp 5f
3:  andl $~0x200, FRAME_RFLAGS(%rsp)
    jmp 5f
4:  orl $0x200, FRAME_RFLAGS(%rsp)
5:  incq FRAME_RIP(%rsp)
    popq %rax
    addq $8, %rsp
    iretq

/* `ud2` with RAX = RING0_CALL calls the function in RDI, with RSI for its argument, in ring 0. */
ring0_call:
    cmpl $RING0_CALL, %eax
    jne 1f
    addq $2, (%rsp)
    movq %rdi, %rax
    movq %rsi, %rdi
    cld
    call *%rax
    iretq
1:  pushq $0
    pushq $6

report:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    movq %rsp, %rdi
    movq %cr2, %rsi
    cld
    andq $-16, %rsp
    call fault
1:  hlt
    jmp 1b

/* Interrupts: count, and tell the local APIC. A few instructions, for each costs a microsecond on some hosts. */
    .balign 32
interrupts:
    .set vector, 32
    .rept 224
    .balign 32
    incl irq_counts + 4 * vector
    pushq %rax
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
    popq %rax
    iretq
    .set vector, vector + 1
    .endr
interrupts_end:

/* Application processors begin here in real mode: copied to TRAMPOLINE, CS:IP = TRAMPOLINE >> 4 : 0. */
.code16
.globl trampoline, trampoline_end
    .balign 16
trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl TRAMPOLINE + ap_gdt_pointer - trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $KERNEL_CS32, $ap_protected
    .balign 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

.code32
ap_protected:
    movl $KERNEL_DS, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $ap_boot_stack_top, %esp
    call enable_long_mode
    ljmp $KERNEL_CS, $ap_long
.code64
ap_long:
    movq %cr4, %rax
    orl $0x600, %eax
    movq %rax, %cr4
    lidt idt_pointer
    movl ap_cpu, %edi
    movq ap_stack, %rsi
    movq ap_ring0_stack, %rdx
    movl $ap_start, %ecx
    jmp ring3

.data
    .balign 16
.globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* KERNEL_CS */
    .quad 0x00cf93000000ffff /* KERNEL_DS */
    .quad 0x00cf9b000000ffff /* KERNEL_CS32 */
    .quad 0
    .quad 0x00cff3000000ffff /* USER_DS */
    .quad 0x00affb000000ffff /* USER_CS */
    .quad 0
gdt_tss:
    .fill 16 * MAX_CPUS, 1, 0
gdt_end:

    .balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

/* Identity map of the first 4 GiB by pages of 2 MiB; main.c adds what is above on request. */
    .balign 4096
.globl pml4
pml4:
    .quad pdpt + PRESENT_RW_USER
    .fill 511, 8, 0
pdpt:
    .set i, 0
    .rept 4
    .quad directories + i * 4096 + PRESENT_RW_USER
    .set i, i + 1
    .endr
    .fill 508, 8, 0
directories:
    .set i, 0
    .rept 4 * 512
    .quad i * 0x200000 + PRESENT_RW_USER + LARGE
    .set i, i + 1
    .endr

.bss
    .balign 4096
.globl idt, io_bitmap
idt:
    .skip 256 * 16
tss:
    .skip TSS_SIZE * MAX_CPUS
io_bitmap:
    .skip 8193 /* the last byte is all ones (Intel SDM 1, 19.5.2): runtime.c */
    .balign 4096
    .skip 4096
boot_stack_top:
ap_boot_stack:
    .skip 512
ap_boot_stack_top:
    .skip 4096
kernel_stack_top:
    .skip 65536
user_stack_top:

.section .note.GNU-stack, "", @progbits
