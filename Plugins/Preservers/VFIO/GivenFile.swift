import BatonRuntime
import Glibc

/// Descriptors that were opened by somebody else: `fd=` of a device or an iommufd.
enum VFIOGivenFile {
    /// Takes a descriptor over: a number, or a name of `getfd`.
    static func take(_ text: String, vm: VirtualMachine) throws(VMMError) -> Int32 {
        guard let first = text.utf8.first, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(first) else {
            guard let fd = vm.namedFDs.release(text) else {
                throw VMMError("File descriptor named '\(text)' has not been found")
            }
            return fd
        }
        guard let number = SizeText.unsignedNumber(text), let fd = Int32(exactly: number), FD.isOpen(fd) else {
            throw VMMError("Invalid file descriptor number '\(text)'")
        }
        try FD.setCloseOnExec(fd, true)
        return fd
    }
}
