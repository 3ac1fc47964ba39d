import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo flood`: echo requests (RFC 792) as fast as they are answered, each with a number of its own.
///
/// `ping -f` waits for the answer to its last request for two of the longest round trips only, some
/// ms: on a busy machine it takes a late answer for a lost one.
struct FloodCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "flood", abstract: "Sends echo requests to an address, and counts the answers.",
        shouldDisplay: false)

    @Argument(help: "An IPv4 address.")
    var address: String

    @Option(help: "How many requests, up to 65,535.")
    var count = 2000

    func run() throws {
        let flood = try EchoFlood(address)
        try flood.run(count)
        print(flood.summary)
        guard flood.isComplete else { throw ExitCode.failure }
    }
}

/// Echo requests to one address, over a raw socket.
final class EchoFlood {
    private let descriptor: Int32
    private let identifier = UInt16(truncatingIfNeeded: getpid())
    /// How often each number was answered.
    private var answers: [Int] = []
    private var sent = 0
    private var longest = 0.0

    /// Seconds after which the next request is sent without an answer to the one before.
    private static let patience = 0.01
    /// Seconds that the last answers may take.
    private static let lastPatience = 10.0
    private static let headerLength = 8
    private static let length = 64

    init(_ address: String) throws {
        descriptor = socket(AF_INET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), Int32(IPPROTO_ICMP))
        guard descriptor >= 0 else { throw Failure.system("cannot open a raw socket") }
        var peer = sockaddr_in()
        peer.sin_family = sa_family_t(AF_INET)
        guard inet_pton(AF_INET, address, &peer.sin_addr) == 1 else { throw Failure("'\(address)' is no address") }
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let code = withUnsafePointer(to: &peer) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(descriptor, $0, size) }
        }
        guard code == 0 else { throw Failure.system("cannot send to \(address)") }
    }

    deinit { close(descriptor) }

    var isComplete: Bool { answers.allSatisfy { $0 == 1 } }
    var summary: String {
        let missing = answers.indices.filter { answers[$0] == 0 }, twice = answers.count { $0 > 1 }
        return "\(sent) sent, \(answers.count { $0 > 0 }) answered, \(twice) of them twice, not answered: \(missing); "
            + String(format: "the longest took %.1f ms", longest * 1000)
    }

    func run(_ count: Int) throws {
        answers = Array(repeating: 0, count: count)
        for number in 0..<count {
            var packet = request(UInt16(number))
            guard send(descriptor, &packet, packet.count, 0) == packet.count else {
                throw Failure.system("cannot send request \(number)")
            }
            sent += 1
            let start = Clock.now
            while answers[number] == 0, Clock.now < start + Self.patience {
                receive(until: start + Self.patience)
            }
            longest = max(longest, Clock.now - start)
        }
        let start = Clock.now
        while answers.contains(0), Clock.now < start + Self.lastPatience { receive(until: start + Self.lastPatience) }
        longest = max(longest, Clock.now - start)
        // What is answered twice comes soon.
        let end = Clock.now + Self.patience
        while Clock.now < end { receive(until: end) }
    }

    private func request(_ number: UInt16) -> [UInt8] {
        var packet: [UInt8] = [8, 0, 0, 0]
        for word in [identifier, number] { packet += [UInt8(word >> 8), UInt8(word & 0xff)] }
        packet += (0..<Self.length - Self.headerLength).map { UInt8(truncatingIfNeeded: Int(number) &* 31 &+ $0) }
        var sum = stride(from: 0, to: packet.count, by: 2).reduce(UInt32(0)) {
            $0 + UInt32(packet[$1]) << 8 + UInt32(packet[$1 + 1])
        }
        while sum > 0xffff { sum = sum >> 16 + sum & 0xffff }
        packet[2] = ~UInt8(truncatingIfNeeded: sum >> 8)
        packet[3] = ~UInt8(truncatingIfNeeded: sum)
        return packet
    }

    /// Takes one packet, if one comes in time.
    private func receive(until end: Double) {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, Int32(max(1, ((end - Clock.now) * 1000).rounded(.up)))) > 0 else { return }
        var buffer = [UInt8](repeating: 0, count: 2048)
        let count = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        // With its IP header.
        guard count > 0, case let header = Int(buffer[0] & 15) * 4, count == header + Self.length, buffer[header] == 0
        else { return }
        let number = UInt16(buffer[header + 6]) << 8 | UInt16(buffer[header + 7])
        // All of it but type and checksum is as it was sent.
        guard Int(number) < answers.count, buffer[header + 4..<count].elementsEqual(request(number)[4...]) else {
            return
        }
        answers[Int(number)] += 1
    }
}
