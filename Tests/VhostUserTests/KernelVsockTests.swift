import Foundation
import TestSupport
import Testing

/// `vhost-vsock-device`: the kernel has the guest's sockets.
@Suite("vhost-vsock of the kernel", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct KernelVsockTests {
    @Test("packets go both ways, a stop loses none, and the guest reads its address")
    func work() throws {
        try withKernelVsock { vsock in
            #expect(vsock.guest.serial.contains("cid: \(KernelVsockGuest.address)\n"))
            try vsock.guest.qmp.execute("stop")
            #expect(vsock.requests.last == "run 0")
            try vsock.guest.qmp.execute("cont")
            try vsock.guest.waitForProgress()
            #expect(vsock.requests.prefix(4) == ["open", "own", "address 42", "run 1"])
            #expect(vsock.turns() == ["address"] && vsock.resets == 0)
            vsock.expectCleanLog()
            try vsock.guest.end()
        }
    }

    @Test("a reset of the machine starts the queues anew, with the device that there is")
    func reset() throws {
        try withKernelVsock { vsock in
            try vsock.guest.reset()
            #expect(vsock.turns() == ["address"] && vsock.resets == 0)
            vsock.expectCleanLog()
            try vsock.guest.end()
        }
    }

    @Test("a queue that the kernel finds broken is an error of the device, until its driver resets it")
    func brokenQueue() throws {
        try withKernelVsock { vsock in
            vsock.guest.process.signal(SIGUSR1)
            try vsock.guest.process.waitForErrors("the kernel reports a broken queue")
            try eventually("the queues rest: \(vsock.log)") { vsock.requests.last == "run 0" }
            try vsock.resetFailed()
            try vsock.guest.update()
            try eventually("the guest is told: \(vsock.log)") { vsock.resets == 1 }
            try vsock.guest.end()
        }
    }

    @Test("queues that the kernel refuses are an error of the device")
    func refusedQueues() throws {
        let directory = try TemporaryDirectory()
        let vsock = try KernelVsockGuest(in: directory, options: ["--refuse", "run=14"])
        try vsock.guest.process.waitForErrors("the kernel refuses the start of the queues: Bad address")
        try vsock.resetFailed()
        #expect(vsock.requests.last == "run 1")
        try vsock.guest.end()
    }

    @Test("what is wrong with the options is said")
    func options() throws {
        for (options, error) in [
            ("", "guest-cid property must be greater than 2"),
            (",guest-cid=2", "guest-cid property must be greater than 2"),
            (",guest-cid=4294967295", "guest-cid property must not be 4294967295, which is any address"),
            (",guest-cid=4294967296", "guest-cid property must be a 32-bit number"),
            (",guest-cid=3,vhostfd=99", "vhost-vsock: unable to parse vhostfd: Invalid file descriptor number '99'"),
            (
                ",guest-cid=3,vhostfd=v",
                "vhost-vsock: unable to parse vhostfd: File descriptor named 'v' has not been found"
            ),
            (",guest-cid=3,vhostfd=0", "vhost-vsock: vhost_dev_init failed: Inappropriate ioctl for device"),
        ] {
            let errors = try KernelVsockGuest.errors(options)
            #expect(errors.contains(error), "\(options): \(errors)")
        }
    }

    @Test("what the host lacks is said, with what to do")
    func host() throws {
        let usual = ",guest-cid=42"
        if access("/dev/vhost-vsock", F_OK) != 0 {
            let errors = try KernelVsockGuest.errors(usual, simulator: nil)
            #expect(errors.contains("vhost-vsock: failed to open vhost device: No such file or directory"), "\(errors)")
            #expect(errors.contains("modprobe vhost_vsock"), "\(errors)")
        }
        for (simulator, options, error, hint) in [
            (["--refuse", "open=13"], usual, "failed to open vhost device: Permission denied", "the group kvm"),
            (["--refuse", "own=11"], usual, "vhost_dev_init failed: Resource temporarily unavailable", ""),
            (["--refuse", "own=16"], usual, "vhost_dev_init failed: Device or resource busy", "open another"),
            (["--taken", "42"], usual, "unable to set guest cid: Address already in use", "Another VM of this host"),
            (["--lack", "seqpacket"], usual + ",seqpacket=on", "backend doesn't support seqpacket", "5.14"),
            (["--lack", "version1"], usual, "the kernel lacks VIRTIO_F_VERSION_1", ""),
        ] {
            let errors = try KernelVsockGuest.errors(options, simulator: simulator)
            #expect(errors.contains(error) && (hint.isEmpty || errors.contains(hint)), "\(simulator): \(errors)")
        }
    }

    @Test("one that is plugged has an address of its own, over updates, and gives it back")
    func hotPlug() throws {
        let ports = ["-device", "pcie-root-port,id=rp0,chassis=1", "-cpr-enable", "restart"]
        try withKernelVsock(extra: ports) { vsock in
            let guest = vsock.guest
            let device: [String: Any] = [
                "driver": "vhost-vsock-pci", "bus": "rp0", "id": "v", "guest-cid": KernelVsockGuest.address,
            ]
            #expect {
                try guest.qmp.execute("device_add", device)
            } throws: {
                "\($0)".contains("vhost-vsock: unable to set guest cid: Address already in use")
            }
            let other = device.merging(["guest-cid": 77]) { $1 }
            try guest.qmp.execute("device_add", other)
            #expect(vsock.turns(77) == ["address"])
            try guest.update()
            try vsock.waitForProgress(resets: 1)
            #expect(vsock.turns(77) == ["address", "closed", "address"])
            try guest.qmp.execute("device_del", ["id": "v"])
            _ = try guest.qmp.waitForEvent("DEVICE_DELETED")
            try eventually("the address is free: \(vsock.log)") { vsock.turns(77).last == "closed" }
            try guest.qmp.execute("device_add", other)
            #expect(vsock.turns(77).last == "address")
            try guest.waitForProgress()
            vsock.expectCleanLog()
            try guest.end()
        }
    }
}
