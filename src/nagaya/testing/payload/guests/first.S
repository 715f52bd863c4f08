/* Its first instructions write a byte to the first serial port; then it halts for ever. For measuring a start. */
.section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad entry32

.section .entry, "ax"
.globl entry64
entry64:
entry32: /* these bytes mean the same in 32 and 64 bits */
    movw $0x3f8, %dx
    movb $0x21, %al
    outb %al, %dx
    cli
1:  hlt
    jmp 1b
.section .note.GNU-stack, "", @progbits
