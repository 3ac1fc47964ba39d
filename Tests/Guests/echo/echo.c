// A bare-metal guest that sends back whatever the serial port receives, after
// one line that says it is there. Runs in M-mode (-bios none).
#include "bare.h"

_Noreturn void run(void) {
    // FIFOs on, so that bytes that are on their way are in the device's state.
    UART[2] = 1;
    text("echo\n");
    for (;;) {
        while (!(UART[5] & 1)) {}
        put((char)UART[0]);
    }
}

ENTER_RUN;
