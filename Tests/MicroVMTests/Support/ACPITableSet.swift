import BatonRuntime
import Testing

/// The tables that a guest finds from the root.
struct ACPITableSet {
    /// By signature.
    private(set) var tables: [String: [UInt8]] = [:]

    /// Follows the pointers, and checks every sum, length and revision on the way.
    init(rsdpAt root: UInt64, bytes read: (_ address: UInt64, _ count: Int) -> [UInt8]) throws {
        func sum(_ bytes: some Sequence<UInt8>) -> UInt8 { bytes.reduce(0, &+) }
        let rsdp = read(root, 36)
        #expect(root % 16 == 0)
        #expect(Array(rsdp.prefix(8)) == Array("RSD PTR ".utf8))
        #expect(rsdp[15] == 2)
        #expect(rsdp.number(20, UInt32.self) == 36)
        #expect(sum(rsdp.prefix(20)) == 0)
        #expect(sum(rsdp) == 0)

        func table(_ address: UInt64) throws -> (String, [UInt8]) {
            let length = read(address, 8).number(4, UInt32.self)
            let bytes = read(address, Int(length))
            let signature = String(decoding: bytes.prefix(4), as: UTF8.self)
            try #require(bytes.count >= 36)
            #expect(sum(bytes) == 0, "\(signature)")
            return (signature, bytes)
        }
        let (signature, list) = try table(rsdp.number(24, UInt64.self))
        #expect(signature == "XSDT")
        #expect((list.count - 36) % 8 == 0)
        for place in stride(from: 36, to: list.count, by: 8) {
            let (name, bytes) = try table(list.number(place, UInt64.self))
            #expect(tables[name] == nil)
            tables[name] = bytes
        }
        let fadt = try #require(tables["FACP"])
        let (name, dsdt) = try table(fadt.number(140, UInt64.self))
        #expect(name == "DSDT")
        #expect(UInt64(fadt.number(40, UInt32.self)) == fadt.number(140, UInt64.self))
        tables["DSDT"] = dsdt
    }
}
