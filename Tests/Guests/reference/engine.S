# Runs a table of cases in M-mode, each from a state that the table gives to a record of what came of it.
# Tests/RISCVTests/ReferenceProgram.swift makes the tables, and has the layout that the offsets below are of.
#
# A case is: memory words and CSRs are set, all registers are loaded, and mret enters the code under test in the mode
# of its mstatus. It comes back by a trap, its own or that of the ebreak behind it; one that is delegated to S-mode
# comes by way of an ecall there. Whatever the code does to registers, nothing here depends on one: the context is
# found by mscratch.

#include "layout.h"

.option norvc
.option norelax
.section .text.start
.globl _start
_start:
    csrr t0, mhartid
1:  bnez t0, 1b
    la t0, machine_trap
    csrw mtvec, t0
    la t0, work
    csrw mscratch, t0
    csrw mie, zero
    csrw satp, zero
    # The last PMP entry opens all that no other entry matches.
    li t0, -1
    csrw PMPADDR_OPEN, t0
    li t0, 0x1f << 56
    csrw PMPCFG_OPEN, t0
    li s0, HEADER
    ld s1, HEADER_GROUPS(s0)
    ld s2, HEADER_GROUP_COUNT(s0)
    ld s3, HEADER_RECORDS(s0)

next_group:
    beqz s2, end
    addi s2, s2, -1
    ld a0, GROUP_STATE(s1)
    la a1, work
    addi a2, a1, STATE_WORDS * 8
1:  ld a3, (a0)
    sd a3, (a1)
    addi a0, a0, 8
    addi a1, a1, 8
    bltu a1, a2, 1b
    ld s4, GROUP_CASES(s1)
    ld s5, GROUP_OPERANDS(s1)
    ld s6, GROUP_PLACES(s1)
    ld s7, GROUP_RESULT(s1)
    ld s8, GROUP_FLAGS(s1)
    addi s1, s1, GROUP_SIZE

next_case:
    beqz s4, next_group
    addi s4, s4, -1
    la t6, work
    # The operands, each at its place in the state: numbers from 1 in the bytes of s6.
    mv a0, s6
1:  andi a1, a0, 0xff
    beqz a1, 2f
    srli a0, a0, 8
    slli a1, a1, 3
    add a1, a1, t6
    ld a2, (s5)
    addi s5, s5, 8
    sd a2, -8(a1)
    j 1b
2:
    .irp poke, 0, 1
    ld a0, (STATE_POKES + 2 * \poke) * 8(t6)
    beqz a0, 1f
    ld a1, (STATE_POKES + 2 * \poke + 1) * 8(t6)
    sd a1, (a0)
1:
    .endr
    andi a0, s8, FLAG_CODE
    beqz a0, 1f
    fence.i
1:  andi a0, s8, FLAG_CSRS
    beqz a0, 1f
    .macro setcsr csr, place
    ld a0, (\place) * 8(t6)
    csrw \csr, a0
    .endm
    setcsr satp, STATE_SATP
    setcsr medeleg, STATE_MEDELEG
    setcsr mideleg, STATE_MIDELEG
    setcsr mie, STATE_MIE
    setcsr mip, STATE_MIP
    setcsr menvcfg, STATE_MENVCFG
    setcsr stvec, STATE_STVEC
    setcsr mcounteren, STATE_MCOUNTEREN
    setcsr scounteren, STATE_SCOUNTEREN
    setcsr senvcfg, STATE_SENVCFG
1:  andi a0, s8, FLAG_PMP
    beqz a0, 1f
    csrw pmpcfg0, zero
    setcsr pmpaddr0, STATE_PMPADDR
    setcsr pmpaddr1, STATE_PMPADDR + 1
    setcsr pmpaddr2, STATE_PMPADDR + 2
    setcsr pmpaddr3, STATE_PMPADDR + 3
    setcsr pmpcfg0, STATE_PMPCFG
    setcsr pmpcfg2, STATE_PMPCFG + 1
1:  andi a0, s8, FLAG_TLB
    beqz a0, 1f
    sfence.vma
1:
    csrw mcause, zero
    csrw mtval, zero
    csrw scause, zero
    csrw sepc, zero
    csrw stval, zero
    # Floating point is on while f registers are loaded, and then as the case has it.
    li a0, 3 << 13
    csrs mstatus, a0
    ld a0, STATE_FCSR * 8(t6)
    csrw fcsr, a0
    .irp r, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fld f\r, (STATE_F + \r) * 8(t6)
    .endr
    ld a0, STATE_PC * 8(t6)
    csrw mepc, a0
    ld a0, STATE_MSTATUS * 8(t6)
    csrw mstatus, a0
    .irp r, 0,1,2,3,4,5,6,7,8
    sd s\r, (STATE_WORDS + \r) * 8(t6)
    .endr
    .irp r, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    ld x\r, (STATE_X + \r) * 8(t6)
    .endr
    ld t6, (STATE_X + 31) * 8(t6)
    mret

.balign 64
# Where S-mode's traps go, interrupts to a word each: mepc of the ecall tells which.
.globl supervisor_trap
supervisor_trap:
    .rept 16
    ecall
    .endr
    j supervisor_trap

.balign 64
machine_trap:
    csrrw t6, mscratch, t6
    # Behind the state, and what is kept over a case, are the x and f registers afterwards.
    .irp r, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    sd x\r, (AFTER + \r) * 8(t6)
    .endr
    csrr t0, mscratch
    sd t0, (AFTER + 31) * 8(t6)
    csrw mscratch, t6
    csrr t1, mstatus
    li t0, 3 << 13
    csrs mstatus, t0
    .irp r, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fsd f\r, (AFTER + 32 + \r) * 8(t6)
    .endr
    csrr t2, fcsr
    .irp r, 0,1,2,3,4,5,6,7,8
    ld s\r, (STATE_WORDS + \r) * 8(t6)
    .endr

    # What is set for the case must not hold for what comes between cases.
    andi a0, s8, FLAG_PMP
    beqz a0, 1f
    csrw pmpcfg0, zero
1:
    csrr a0, mcause
    sd a0, RECORD_MCAUSE(s3)
    csrr a0, mepc
    sd a0, RECORD_MEPC(s3)
    csrr a0, mtval
    sd a0, RECORD_MTVAL(s3)
    sd t1, RECORD_MSTATUS(s3)
    sd t2, RECORD_FCSR(s3)
    csrr a0, scause
    sd a0, RECORD_SCAUSE(s3)
    csrr a0, sepc
    sd a0, RECORD_SEPC(s3)
    csrr a0, stval
    sd a0, RECORD_STVAL(s3)
    slli a0, s7, 3
    add a0, a0, t6
    ld a0, AFTER * 8(a0)
    sd a0, RECORD_RESULT(s3)
    ld a0, STATE_WATCH * 8(t6)
    beqz a0, 1f
    ld a0, (a0)
1:  sd a0, RECORD_WATCHED(s3)

    # A case whose registers are asked for: all of them, for whoever looks into a difference.
    ld a0, HEADER_DONE(s0)
    ld a1, HEADER_ASKED(s0)
    bne a0, a1, 2f
    addi a2, t6, AFTER * 8
    addi a3, a2, 64 * 8
    addi a4, s0, HEADER_REGISTERS
1:  ld a5, (a2)
    sd a5, (a4)
    addi a2, a2, 8
    addi a4, a4, 8
    bltu a2, a3, 1b
2:  addi a0, a0, 1
    sd a0, HEADER_DONE(s0)

    # All registers in one number each for x and f.
    li a0, 0x9e3779b97f4a7c15
    li a1, 0
    .irp r, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld a2, (AFTER + \r) * 8(t6)
    mul a1, a1, a0
    add a1, a1, a2
    .endr
    sd a1, RECORD_X(s3)
    li a1, 0
    .irp r, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ld a2, (AFTER + 32 + \r) * 8(t6)
    mul a1, a1, a0
    add a1, a1, a2
    .endr
    sd a1, RECORD_F(s3)
    addi s3, s3, RECORD_SIZE
    j next_case

end:
    # The test finisher: power off.
    li t0, 0x100000
    li t1, 0x5555
    sw t1, (t0)
1:  j 1b

.section .bss
.balign 4096
work:
    .skip 4096
