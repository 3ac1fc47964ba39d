import BatonBase
@testable import BatonCPR
import BatonRuntime
import CBaton
import Glibc

/// What comes over the channel between the two VMMs of an update.
extension Target {
    private static let secret: UInt64 = 0x1122_3344_5566_7788

    static let handover = Target(
        name: "handover",
        seeds: {
            let packets: [(letter: String, rest: [UInt8], fds: UInt8)] = [
                ("H", little(17 as UInt64), 0), ("I", little(17 as UInt64), 1), ("S", little(9 as UInt64), 3),
                ("D", [], 2), ("E", [], 0), ("F", Array("no".utf8), 0), ("X", [], 0), ("Y", [], 0), ("L", [], 0),
                ("C", [], 0),
            ]
            return packets.map { [0, $0.fds, UInt8($0.rest.count + 1)] + Array($0.letter.utf8) + $0.rest }
                + [packets.flatMap { [0, $0.fds, UInt8($0.rest.count + 1)] + Array($0.letter.utf8) + $0.rest }]
        },
        make: {
            let secretBytes = little(secret)
            return { bytes in
                let free = lowestFreeDescriptor()
                var input = Input(bytes)
                var stream: [UInt8] = []
                do {
                    let (ours, theirs) = try socketPair(SOCK_SEQPACKET)
                    defer {
                        close(ours)
                        close(theirs)
                    }
                    var packets = 0
                    while !input.isAtEnd, packets < 16 {
                        let form = input.byte()
                        let fds = [Int32](repeating: 2, count: Int(input.byte()) % (Int(CBATON_MESSAGE_FDS) + 1))
                        let count = Int(input.byte())
                        let content = (form & 1 == 0 ? secretBytes : []) + input.take(count)
                        stream += content
                        guard !content.isEmpty,
                            cbaton_send_fds(theirs, content, content.count, fds, fds.count, Int32(MSG_DONTWAIT)) >= 0
                        else { continue }
                        packets += 1
                    }
                    if (bytes.first ?? 0) & 2 != 0, HandoverMessage.isIntroduction(nextOn: ours) {
                        if let (_, state, _) = try? HandoverMessage.receiveIntroduction(ours) { close(state) }
                    }
                    for _ in 0...packets {
                        do throws(VMMError) {
                            guard let message = try HandoverMessage.receive(ours, secret: secret) else { break }
                            Target.drop(message)
                        } catch {}
                    }
                }
                // The reports of the new VMM come as a stream.
                var watch = WatchMessages(stage: .starting, secret: secret, mayWait: bytes.count & 1 == 0)
                let (ours, theirs) = try socketPair(SOCK_STREAM)
                _ = fcntl(ours, F_SETFL, O_NONBLOCK)
                _ = stream.withUnsafeBytes { write(theirs, $0.baseAddress, $0.count) }
                close(theirs)
                var turns = 0
                while watch.receive(from: ours) {
                    turns += 1
                    expect(turns < 1000, "the watch does not come to the stream's end")
                }
                close(ours)
                _ = watch.ended
                expect((watch.refusal?.utf8.count ?? 0) <= 3 * 4200, "the reason has no limit")
                expect(lowestFreeDescriptor() == free, "a descriptor is lost")
            }
        })

    private static func drop(_ message: HandoverMessage) {
        switch message {
        case .hello, .end: break
        case .introduction(_, let state): close(state)
        case .state(let state, let token, _, let checkpoint):
            for fd in [state, token] + (checkpoint.map { [$0] } ?? []) { close(fd) }
        case .descriptors(let fds): for fd in fds { close(fd) }
        }
    }
}
