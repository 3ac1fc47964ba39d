import BatonRuntime
import CBaton
import Glibc
@testable import PreserverVhostUser

/// A vhost-user back end that says what the input says: the front end's messages of a device's life, and their answers.
extension Target {
    static let vhostUser = Target(
        name: "vhost-user",
        seeds: {
            func reply(_ request: UInt8, _ payload: [UInt8], fds: UInt8 = 0) -> [UInt8] {
                [request, 5, fds] + little(UInt16(payload.count)) + payload
            }
            let features: UInt64 = 1 << 32 | 1 << 30
            let config = little(0 as UInt32, 60, 0) + [UInt8](repeating: 3, count: 60)
            let start = reply(1, little(features)) + reply(15, little(0x3209 as UInt64))
            // With acknowledgements: owner, table and the rest are answered.
            let acknowledged =
                start + reply(17, little(4 as UInt64)) + reply(24, config) + reply(5, little(0 as UInt64))
                + reply(31, little(4096 as UInt64, 0) + little(2 as UInt16, 128) + [0, 0, 0, 0], fds: 1)
            let plain =
                reply(1, little(features)) + reply(15, little(0x201 as UInt64)) + reply(17, little(4 as UInt64))
                + reply(24, config) + reply(24, config) + reply(11, little(0 as UInt32, 7))
            return [acknowledged, plain, reply(1, little(1 << 32 as UInt64)) + reply(24, config)]
        },
        make: {
            let space = AddressSpace()
            let memory = try MemoryFile("ram")
            memory.fill(length: 1 << 20)
            let host = try Mapping.map(length: 1 << 20, alignment: 4096, fd: memory.fd, shared: true, name: "ram")
            let ram = RAMBlock(
                name: "ram", usedLength: 1 << 20, maxLength: 1 << 20, alignment: 4096, host: host, fd: dup(memory.fd),
                shared: true, origin: "memfd")
            try space.map(ram, at: 0x8000_0000, size: 1 << 20)
            let shared = try SharedRegions(space)
            let event = cbaton_eventfd()
            return { bytes in
                let free = lowestFreeDescriptor()
                let (ours, theirs) = try socketPair(SOCK_STREAM)
                _ = fcntl(ours, F_SETFL, O_NONBLOCK)
                Target.queueReplies(bytes, on: theirs, file: memory.fd)
                do {
                    let channel = VhostUserChannel(socket: ours, patience: PeerPatience())
                    do throws(VMMError) {
                        try Target.live(channel, shared, event)
                    } catch {}
                }
                close(ours)
                close(theirs)
                // A request of the back end's own.
                if let missing = VhostUserDevice.missingBytes(after: Array(bytes.prefix(64))) {
                    expect(missing <= VhostUser.headerSize + VhostUser.maxPayload, "\(missing) bytes are waited for")
                }
                expect(lowestFreeDescriptor() == free, "a descriptor is lost")
            }
        })

    /// Sends what the back end will say, and ends its side of the connection.
    private static func queueReplies(_ bytes: [UInt8], on socket: Int32, file: Int32) {
        var input = Input(bytes)
        var count = 0
        while !input.isAtEnd, count < 64 {
            count += 1
            let request = UInt32(input.byte())
            let flags = input.byte()
            let fds = [Int32](repeating: file, count: Int(input.byte() % 4))
            let payload = input.take(Int(input.number(UInt16.self) & 0x1fff))
            // Seldom a length that is not the payload's.
            let size = flags & 0x40 == 0 ? UInt32(payload.count) : input.number(UInt32.self)
            let message = VhostUserHeader(request: request, flags: UInt32(flags & 0x0f), size: size).bytes + payload
            guard cbaton_send_fds(socket, message, message.count, fds, fds.count, Int32(MSG_DONTWAIT)) > 0 else {
                break
            }
        }
        shutdown(socket, Int32(SHUT_WR))
    }

    private static func live(_ channel: VhostUserChannel, _ shared: SharedRegions, _ event: Int32) throws(VMMError) {
        let backend = try channel.negotiate(queues: 2, configSize: 60, isFirst: true)
        expect(backend.config.count == 60, "the configuration has \(backend.config.count) bytes")
        channel.begin()
        try channel.setMemoryTable(shared)
        if backend.has(VhostUser.ProtocolFeature.inflight) {
            let inflight = try channel.getInflight(queues: 2, size: 128)
            if inflight.fd >= 0 {
                defer { close(inflight.fd) }
                try channel.setInflight(inflight)
            }
        }
        let queue = VirtioQueueSetup(
            index: 0, size: 128, descriptors: 0x8000_0000, available: 0x8000_1000, used: 0x8000_2000)
        try channel.setVring(queue, base: 0, kick: event, call: event, error: event)
        try channel.enableVring(0, true)
        channel.onConfig = { expect($0.count == 60, "the configuration has \($0.count) bytes") }
        try channel.startGetConfig(size: 60)
        try channel.continueGetConfig()
        try channel.settle()
        try channel.setConfig(offset: 32, [1])
        _ = try channel.getVringBase(0)
        try channel.set(.resetDevice, [])
    }
}
