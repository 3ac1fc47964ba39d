# The boot sector of a disk for SeaBIOS: reads the other sectors through the BIOS (interrupt 0x13, function 0x42), one
# each tick of a timer, and says on the first serial port what it found:
#
#   sector NNNN               in hexadecimal, again from the first when the last was read
#   sector FAIL               the BIOS refused, or the contents are not NNNN in each word
#
# Needs of the machine: the BIOS' virtio-blk driver, the PIT and the first PIC (the tick), the serial port. The BIOS
# for microvm programs neither of them.

    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    movb %dl, drive
    cld

    # The PIC: interrupts from vector 32 on, of which only 0 is let through.
    movw $tick, 32 * 4
    movw %ax, 32 * 4 + 2
    movb $0x11, %al
    outb %al, $0x20
    movb $32, %al
    outb %al, $0x21
    movb $4, %al
    outb %al, $0x21
    movb $1, %al
    outb %al, $0x21
    movb $0xfe, %al
    outb %al, $0x21
    # The PIT: channel 0 in mode 2, 18.2 times a second.
    movb $0x34, %al
    outb %al, $0x43
    xorb %al, %al
    outb %al, $0x40
    outb %al, $0x40

next:
    movw $sectors, %cx
    incw address
    cmpw %cx, address
    jb 1f
    movw $1, address
1:
    movw ticks, %ax
    sti
2:
    hlt
    cmpw ticks, %ax
    je 2b

    movw $packet, %si
    movb drive, %dl
    movb $0x42, %ah
    int $0x13
    jc fail
    movw $buffer, %di
    movw $256, %cx
    movw address, %ax
    repe scasw
    jne fail

    movw $found, %si
    call print
    movw address, %bx
    movw $4, %cx
3:
    rolw $4, %bx
    movb %bl, %al
    andb $15, %al
    cmpb $10, %al
    jb 4f
    addb $'a' - '0' - 10, %al
4:
    addb $'0', %al
    call put
    loop 3b
    movw $end, %si
    call print
    jmp next

fail:
    movw $failed, %si
    call print
5:
    cli
    hlt
    jmp 5b

tick:
    pushw %ax
    incw %cs:ticks
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw

# Prints the string at SI.
print:
    lodsb
    testb %al, %al
    jz 6f
    call put
    jmp print
6:
    ret

# Prints AL.
put:
    movb %al, %ah
    movw $0x3fd, %dx
7:
    inb %dx, %al
    testb $0x20, %al
    jz 7b
    movw $0x3f8, %dx
    movb %ah, %al
    outb %al, %dx
    ret

    .set buffer, 0x8000
    .set sectors, 0x800

found:
    .asciz "sector "
failed:
    .asciz "sector FAIL"
end:
    .asciz "\r\n"
ticks:
    .word 0
drive:
    .byte 0
    .balign 4
# What to read where (a "disk address packet").
packet:
    .byte 16, 0
    .word 1
    .word buffer, 0
address:
    .quad 0

    .org 510
    .word 0xaa55
