import BatonBase
import CBaton
import Glibc

/// What ties a checkpoint to guest memory that is not in it.
///
/// Memory that is saved gets an identity, a random number, which is in the
/// checkpoint too and goes on for as long as nothing changes the memory. It
/// ends when the guest runs again or is reset. Over an exec it is in the CPR
/// state; for a file that outlives the process it is an extended attribute of
/// the file, its mark. So a checkpoint can be told from one of older or newer
/// memory in the same file.
extension GuestMemory {
    private static let attribute = "baton.memory-id"
    private static let length = 32

    /// Gives the memory of a stopped guest an identity, unless it has one.
    package func identify() throws(VMMError) {
        guard identity == nil else { return }
        var bytes = [UInt8](repeating: 0, count: GuestMemory.length / 2)
        guard cbaton_getrandom(&bytes, bytes.count) == bytes.count else {
            throw .system("cannot make an identity for the save")
        }
        let digits = Array("0123456789abcdef".utf8)
        identity = String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }

    /// Makes the contents of `blocks`, which stay in their files, durable there
    /// and marks the files with the identity.
    package func keep(_ blocks: [RAMBlock]) throws(VMMError) {
        guard let identity else { return }
        mayBeMarked = true
        for block in blocks {
            guard GuestMemory.setMark(block.fd, identity) else {
                throw .system("cannot mark '\(block.file ?? "")', the memory of RAM block '\(block.name)'")
            }
            guard retryingInterrupts({ fsync(block.fd) }) == 0 else {
                throw .system("cannot flush '\(block.file ?? "")', the memory of RAM block '\(block.name)'")
            }
        }
    }

    /// Ends the identity: memory is about to change. What was saved cannot be
    /// loaded with it any more, whatever happens to this process or the host.
    /// - Throws: why a mark cannot be removed; the memory must not change, and has its marks.
    package func willChange() throws(VMMError) {
        removedMarks = []
        if mayBeMarked {
            for block in blocks where block.isPersistent {
                guard let mark = GuestMemory.mark(block.fd) else { continue }
                let isRemoved = cbaton_remove_attribute(block.fd, GuestMemory.attribute) == 0
                if isRemoved { removedMarks.append((block.fd, mark)) }
                guard isRemoved, retryingInterrupts({ fsync(block.fd) }) == 0 else {
                    let error = VMMError.system(
                        "cannot remove the mark of the last save from '\(block.file ?? "")', "
                            + "the memory of RAM block '\(block.name)'")
                    // The checkpoint still goes with the memory, and can be loaded later.
                    putMarksBack()
                    throw error
                }
            }
            mayBeMarked = false
        }
        identity = nil
    }

    /// Undoes the last `willChange` of marks, as the memory has not been changed after all.
    package func putMarksBack() {
        for (fd, mark) in removedMarks { _ = GuestMemory.setMark(fd, mark) }
        mayBeMarked = mayBeMarked || !removedMarks.isEmpty
        removedMarks = []
    }

    /// Ends an identity that is in no checkpoint, as its save has failed, and that memory did not have before that. A mark
    /// that cannot be removed, of which it is warned, goes with nothing, so the memory may change all the same.
    package func abandonIdentity() {
        do throws(VMMError) { try willChange() } catch {
            Report.warning(error.message)
            (mayBeMarked, identity) = (false, nil)
        }
    }

    private static func setMark(_ fd: Int32, _ mark: String) -> Bool {
        let bytes = Array(mark.utf8)
        return cbaton_set_attribute(fd, attribute, bytes, bytes.count) == 0
    }

    /// The mark that a file has.
    package static func mark(_ fd: Int32) -> String? {
        var bytes = [UInt8](repeating: 0, count: length)
        let count = cbaton_get_attribute(fd, attribute, &bytes, bytes.count)
        return count == length ? String(decoding: bytes, as: UTF8.self) : nil
    }

    /// Whether a file can have a mark. Memory in any other cannot be told from
    /// what it was at a save, and is not left to it.
    public static func canBeMarked(_ fd: Int32) -> Bool {
        var bytes = [UInt8](repeating: 0, count: length)
        return cbaton_get_attribute(fd, attribute, &bytes, bytes.count) >= 0 || errno == ENODATA || errno == ERANGE
    }
}
