import BatonRuntime
import Firmware

/// A firmware file, as `-bios` names it: it ends at 4 GiB, and the last 128 KiB are below 1 MiB as well.
public struct FirmwareImage {
    let bytes: [UInt8]

    /// Where all of it goes: memory that the board maps there.
    public var range: Range<UInt64> { (MemoryMap.firmwareEnd - UInt64(bytes.count))..<MemoryMap.firmwareEnd }
    /// Where its end goes, in RAM, in which firmware has its variables.
    var lowRange: Range<UInt64> { (0x10_0000 - UInt64(min(bytes.count, FirmwareImage.lowLimit)))..<0x10_0000 }

    private static let lowLimit = 128 << 10
    private static let unit = 64 << 10

    /// Reads and checks the file.
    public init(_ path: String) throws(VMMError) {
        let limit = MemoryMap.firmwareEnd - MemoryMap.firmwareStart
        bytes = try attempt("could not load PC BIOS '\(path)'") { () throws(VMMError) in
            let file = try FileBytes.read(path, limit: limit)
            guard file.count > 0, file.count % FirmwareImage.unit == 0 else {
                throw VMMError(
                    "the file has \(file.count) bytes, which is no multiple of 64 KiB",
                    hint: "Name firmware for the machine microvm, such as bios-microvm.bin of SeaBIOS.")
            }
            return file.bytes
        }
    }
}
