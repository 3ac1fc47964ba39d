import BatonBase
import BatonMachine
import CBaton
import Glibc

/// Who owns the guest while an update is under way: one word in a page that the
/// old and the new VMM share.
///
/// It holds a secret that comes with the guest's state, as the page does. The new
/// VMM takes the guest by changing the secret into its complement; the old one takes
/// it back by changing whatever is there into zero, unless it is that complement.
/// Both changes are atomic, so never do both run the guest, however their deadlines
/// and deaths fall. A program between them inherits neither page nor secret.
///
/// A second word says whether anything has been done with the guest since it was
/// taken: if not, the old VMM still can have it back when the new one dies or is late. A third one says whether the new
/// VMM has answered the monitors' clients, even if the old one can receive nothing from it.
struct HandoverToken {
    private static let takenBack: UInt64 = 0
    private static let unused: UInt64 = 0
    private static let used: UInt64 = 1
    private static let givenUp: UInt64 = 2
    /// The descriptor of the page, with FD_CLOEXEC.
    let fd: Int32
    /// What the word holds as long as nobody has taken the guest.
    let secret: UInt64
    /// What it holds when the new VMM has taken the guest.
    private var taken: UInt64 { ~secret }
    private let word: UnsafeMutableRawPointer

    /// Makes a token that nobody has taken.
    init() throws(VMMError) {
        var secret: UInt64 = 0
        while secret == 0 || secret == ~0 {
            guard cbaton_getrandom(&secret, 8) == 8 else { throw .system("cannot make a token for the update") }
        }
        let page = try Mapping.createMemfd(name: "cpr-token", length: Mapping.pageSize, sealSize: true)
        word = try HandoverToken.map(page.raw)
        cbaton_store64(word, secret)
        self.secret = secret
        fd = page.release()
    }

    /// Finds the token of the old VMM.
    /// - Parameter fd: the caller's, which stays open.
    init(fd: Int32, secret: UInt64) throws(VMMError) {
        guard try Mapping.fileLength(fd) == Mapping.pageSize else {
            throw VMMError("fd \(fd) is not the update's token")
        }
        word = try HandoverToken.map(fd)
        self.fd = fd
        self.secret = secret
    }

    private static func map(_ fd: Int32) throws(VMMError) -> UnsafeMutableRawPointer {
        try Mapping.map(
            length: Mapping.pageSize, alignment: Mapping.pageSize, fd: fd, shared: true, name: "the update's token")
    }

    /// For the new VMM.
    /// - Returns: false when the guest has been taken back.
    func take() -> Bool { cbaton_change64(word, secret, taken) != 0 }

    /// For the old VMM.
    /// - Returns: false when the guest has been taken.
    func takeBack() -> Bool {
        while true {
            let value = cbaton_load64(word)
            if value == taken { return false }
            if cbaton_change64(word, value, HandoverToken.takenBack) != 0 { return true }
        }
    }

    /// For the new VMM.
    var isTakenBack: Bool { cbaton_load64(word) == HandoverToken.takenBack }

    private var useWord: UnsafeMutableRawPointer { word + 8 }

    /// For the old VMM: whether the new one has taken the guest and done something with it, so that it is the new one's
    /// for good.
    var isUsed: Bool { cbaton_load64(useWord) == HandoverToken.used }

    /// For the new VMM, which has taken the guest and is about to do something with it.
    /// - Returns: false when the old one has found it dead or late.
    func use() -> Bool { cbaton_change64(useWord, HandoverToken.unused, HandoverToken.used) != 0 }

    /// For the old VMM, when the new one has taken the guest and is dead or late.
    /// - Returns: false when something has been done with the guest since.
    func takeBackUnused() -> Bool { cbaton_change64(useWord, HandoverToken.unused, HandoverToken.givenUp) != 0 }

    private var waitWord: UnsafeMutableRawPointer { word + 16 }

    /// For the new VMM, which waits for its client, and is about to answer those of monitors.
    func noteWait() { cbaton_store64(waitWord, 1) }

    /// For the old VMM.
    var hasWaited: Bool { cbaton_load64(waitWord) != 0 }

    /// Lets go of the page, and keeps the descriptor.
    func unmap() { munmap(word, Mapping.pageSize) }

    /// Lets go of the page and the descriptor.
    func close() {
        unmap()
        Glibc.close(fd)
    }
}
