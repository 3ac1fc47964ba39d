import BatonRuntime
@testable import Chardev
import Glibc
@testable import Virtio

/// Byte streams of peers that are cut anywhere: frames of a network's stream socket, and telnet.
extension Target {
    static let frames = Target(
        name: "frames",
        seeds: {
            [
                [3, 0] + [0, 0, 0, 2, 7, 8] + [0, 0, 0, 0] + [0, 0, 0, 1, 9], [1, 1, 0xff, 0xff, 0xff, 0xff],
                [5, 3, 255, 251, 1, 65, 255, 255],
            ]
        },
        make: {
            let (streams, other) = (FrameStream(), FrameStream())
            return { bytes in
                var input = Input(bytes)
                let piece = 1 + Int(input.byte())
                let refusals = input.byte()
                let content = input.rest()
                let whole = try Target.frames(in: content, by: streams, piece: max(1, content.count), refusals: 0)
                let cut = try Target.frames(in: content, by: other, piece: piece, refusals: refusals)
                expect(whole == cut, "cut every \(piece) bytes, or with a guest that is full, these are other frames")

                var (once, twice) = (TelnetFilter(), TelnetFilter())
                let all = Target.filter(content, &once)
                let parts = stride(from: 0, to: content.count, by: piece).flatMap {
                    Target.filter(Array(content[$0..<min($0 + piece, content.count)]), &twice)
                }
                expect(all == parts, "telnet that is cut every \(piece) bytes is another text")
            }
        })

    private static func filter(_ bytes: [UInt8], _ filter: inout TelnetFilter) -> [UInt8] {
        var copy = bytes
        let count = copy.withUnsafeMutableBytes { filter.filter($0) }
        return Array(copy[..<count])
    }

    /// The frames in a stream, and why it ended.
    private static func frames(
        in content: [UInt8], by stream: FrameStream, piece: Int, refusals: UInt8
    ) throws -> [[UInt8]] {
        stream.clear()
        let (ours, theirs) = try socketPair(SOCK_STREAM)
        _ = fcntl(ours, F_SETFL, O_NONBLOCK)
        defer { close(ours) }
        var result: [[UInt8]] = []
        var asked: UInt8 = 0
        func deliver(_ frame: UnsafeRawBufferPointer) -> Bool {
            asked &+= 1
            if refusals != 0, asked % 8 < refusals % 4 { return false }
            result.append(Array(frame))
            return true
        }
        var end: FrameStream.End?
        for start in stride(from: 0, to: content.count, by: piece) where end == nil {
            let part = Array(content[start..<min(start + piece, content.count)])
            _ = write(theirs, part, part.count)
            end = stream.read(ours, deliver)
            while stream.isBlocked, end == nil { end = stream.deliverAgain(deliver) }
        }
        close(theirs)
        while end == nil { end = stream.read(ours, deliver) }
        return result
    }
}
