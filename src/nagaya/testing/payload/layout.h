/* What start.S and C share: selectors, addresses, sizes. */
#pragma once

#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define KERNEL_CS32 0x18
#define USER_DS 0x2b /* 0x28 and 0x30, as Linux numbers them: some hosts run only these natively */
#define USER_CS 0x33
#define MAX_CPUS 64
#define TSS_SIZE 104

#define BOOT_LINUX 1
#define BOOT_PVH 2

#define TRAMPOLINE 0x8000
#define LAPIC 0xfee00000
#define LAPIC_EOI 0xfee000b0
#define RING0_CALL 0x30676e72
