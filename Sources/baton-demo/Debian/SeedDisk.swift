import Foundation
import ProcessSupport

/// A disk for cloud-init's data source NoCloud: a file system of ISO 9660 (ECMA-119) with the label `cidata` and a few
/// small files. Linux shows the names, which ISO 9660 has in capitals, in small letters.
struct SeedDisk {
    private static let sector = 2048
    /// Sectors before the first file: 16 of the system's, two descriptors, two path tables, the directory.
    private static let directorySector = 20
    private static let descriptorSector = 16
    private static let pathTables = (little: 18, big: 19)

    /// The names and contents of the files; a name has 30 characters at most.
    let files: [(name: String, contents: Data)]

    func write(to path: String) throws {
        var next = Self.directorySector + 1
        var extents: [(name: String, sector: Int, size: Int)] = []
        var data = Data()
        for file in files.sorted(by: { $0.name < $1.name }) {
            extents.append((file.name.uppercased(), next, file.contents.count))
            data += file.contents
            data += Data(count: -data.count & (Self.sector - 1))
            next = Self.directorySector + 1 + data.count / Self.sector
        }
        var image = Data(count: Self.descriptorSector * Self.sector)
        image += primaryDescriptor(sectors: next)
        image += Self.padded(Data([255]) + Data("CD001".utf8) + Data([1]))
        image += Self.padded(pathTable(bigEndian: false)) + Self.padded(pathTable(bigEndian: true))
        var directory = Self.record([0], Self.directorySector, Self.sector, isDirectory: true)
        directory += Self.record([1], Self.directorySector, Self.sector, isDirectory: true)
        for extent in extents {
            // A file of a name without extension, in its first version.
            directory += Self.record(Array("\(extent.name).;1".utf8), extent.sector, extent.size, isDirectory: false)
        }
        guard directory.count <= Self.sector else { throw Failure("a seed disk has no room for \(files.count) files") }
        image += Self.padded(directory) + data
        try image.write(to: URL(fileURLWithPath: path))
    }

    private func primaryDescriptor(sectors: Int) -> Data {
        var bytes = Data([1]) + Data("CD001".utf8) + Data([1, 0])
        bytes += Self.text("LINUX", 32) + Self.text("cidata", 32) + Data(count: 8)
        bytes += Self.both32(sectors) + Data(count: 32)
        bytes += Self.both16(1) + Self.both16(1) + Self.both16(Self.sector)
        bytes += Self.both32(pathTable(bigEndian: false).count)
        bytes += Self.little32(Self.pathTables.little) + Self.little32(0)
        bytes += Data(Self.little32(Self.pathTables.big).reversed()) + Self.little32(0)
        bytes += Self.record([0], Self.directorySector, Self.sector, isDirectory: true)
        // Set, publisher, preparer, application, and three files, all without a name.
        for length in [128, 128, 128, 128, 37, 37, 37] { bytes += Self.text("", length) }
        // Four times, none of which is given, and the structure's version.
        for _ in 0..<4 { bytes += Data("0000000000000000".utf8) + Data([0]) }
        return Self.padded(bytes + Data([1]))
    }

    private func pathTable(bigEndian: Bool) -> Data {
        let place = Self.little32(Self.directorySector)
        return Data([1, 0]) + (bigEndian ? Data(place.reversed()) : place) + Data(bigEndian ? [0, 1] : [1, 0])
            + Data([0, 0])
    }

    private static func record(_ name: [UInt8], _ sector: Int, _ size: Int, isDirectory: Bool) -> Data {
        let length = 33 + name.count + (name.count & 1 ^ 1)
        var bytes = Data([UInt8(length), 0]) + both32(sector) + both32(size)
        // 1 January 2024, in UTC.
        bytes += Data([124, 1, 1, 0, 0, 0, 0, isDirectory ? 2 : 0, 0, 0]) + both16(1)
        bytes += Data([UInt8(name.count)]) + Data(name)
        return bytes + Data(count: length - bytes.count)
    }

    private static func text(_ text: String, _ length: Int) -> Data {
        Data(text.utf8) + Data(repeating: 0x20, count: length - text.utf8.count)
    }

    private static func padded(_ bytes: Data) -> Data { bytes + Data(count: -bytes.count & (sector - 1)) }

    private static func little32(_ value: Int) -> Data {
        Data((0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) })
    }

    /// Little-endian, and big-endian behind.
    private static func both32(_ value: Int) -> Data {
        let little = little32(value)
        return little + Data(little.reversed())
    }

    private static func both16(_ value: Int) -> Data {
        let little = little32(value).prefix(2)
        return Data(little) + Data(little.reversed())
    }
}
