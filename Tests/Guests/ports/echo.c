// A bare-metal guest with a virtio-serial device that sends back whatever comes
// on its port 1, as an agent would that has it open. Prints
//   port NAME
//   client 1, client 0     when the host's side is opened and closed
// and FAIL.
#define QUEUE_LENGTH 32  // as long as the queues of control messages are
#include "virtio.h"

enum { READY = 0, ADD = 1, PORT_READY = 3, CONSOLE = 4, OPEN = 6, NAME = 7 };
enum { BUFFERS = 8, MESSAGES = 8, PORT = 1 };

struct message { u32 port; u16 event, value; char name[56]; };

static struct queue to_driver, to_device, receive, transmit;
static struct message in[MESSAGES], out[QUEUE_SIZE];
static u8 buffers[BUFFERS][4096];

static void say(u32 port, u16 event, u16 value) {
    u16 slot = to_device.available.index % QUEUE_SIZE;
    out[slot].port = port;
    out[slot].event = event;
    out[slot].value = value;
    to_device.table[slot] = (struct descriptor){(u64)&out[slot], 8, 0, 0};
    make_available(&to_device, slot);
    notify(&to_device);
}

static void offer_message(u16 slot) {
    to_driver.table[slot] = (struct descriptor){(u64)&in[slot], sizeof in[slot], WRITE, 0};
    make_available(&to_driver, slot);
}

static void offer(u16 slot) {
    receive.table[slot] = (struct descriptor){(u64)buffers[slot], sizeof buffers[slot], WRITE, 0};
    make_available(&receive, slot);
}

static void take(struct message *m, u32 length) {
    if (length < 8) fail("message", length, 0);
    switch (m->event) {
    case ADD: say(m->port, PORT_READY, 1); break;
    case NAME:
        if (m->port != PORT) fail("name of port", m->port, 0);
        text("port ");
        for (u32 place = 0; place + 8 < length; place++) put(m->name[place]);
        text("\n");
        say(PORT, OPEN, 1);
        break;
    case OPEN:
        if (m->port != PORT) break;
        text(m->value ? "client 1\n" : "client 0\n");
        break;
    case CONSOLE: break;
    default: fail("event", m->event, m->port);
    }
}

_Noreturn void run(void) {
    start_device(3, 1 << 1);
    start_queue(&to_driver, 2);
    start_queue(&to_device, 3);
    start_queue(&receive, 4);
    start_queue(&transmit, 5);
    driver_ok();
    for (u16 slot = 0; slot < MESSAGES; slot++) offer_message(slot);
    for (u16 slot = 0; slot < BUFFERS; slot++) offer(slot);
    notify(&to_driver);
    notify(&receive);
    say(~0u, READY, 1);
    for (;;) {
        int idle = 1;
        while (has_used(&to_driver)) {
            fence();
            u32 length = to_driver.used.ring[to_driver.seen % QUEUE_SIZE].length;
            u16 slot = take_used(&to_driver);
            if (slot >= MESSAGES) fail("message in", slot, 0);
            take(&in[slot], length);
            offer_message(slot);
            notify(&to_driver);
            idle = 0;
        }
        while (has_used(&receive)) {
            fence();
            u32 length = receive.used.ring[receive.seen % QUEUE_SIZE].length;
            u16 slot = take_used(&receive);
            if (slot >= BUFFERS || length == 0 || length > sizeof buffers[0]) fail("buffer in", slot, length);
            transmit.table[slot] = (struct descriptor){(u64)buffers[slot], length, 0, 0};
            make_available(&transmit, slot);
            notify(&transmit);
            idle = 0;
        }
        while (has_used(&transmit)) {
            fence();
            u16 slot = take_used(&transmit);
            if (slot >= BUFFERS) fail("buffer out", slot, 0);
            offer(slot);
            notify(&receive);
            idle = 0;
        }
        if (idle) wait_interrupt();
    }
}
