/// What methods consist of (ACPI specification 6.5, 20.2.5).
extension AML {
    /// 0 to 6.
    static func argument(_ index: Int) -> AML { raw(0x68 + UInt8(index)) }
    /// 0 to 7.
    static func local(_ index: Int) -> AML { raw(0x60 + UInt8(index)) }
    /// For a result that goes nowhere.
    static let nowhere = raw(0)

    static func store(_ value: AML, in target: AML) -> AML { AML(0x70, operands: [value, target]) }

    /// - Parameter target: where the result goes as well.
    static func and(_ a: AML, _ b: AML, in target: AML = nowhere) -> AML { AML(0x7b, operands: [a, b, target]) }
    static func or(_ a: AML, _ b: AML, in target: AML = nowhere) -> AML { AML(0x7d, operands: [a, b, target]) }

    static func equal(_ a: AML, _ b: AML) -> AML { AML(0x93, operands: [a, b]) }
    static func notEqual(_ a: AML, _ b: AML) -> AML { AML(0x92, operands: [equal(a, b)]) }

    static func ifTrue(_ condition: AML, _ terms: [AML]) -> AML { AML(0xa0, package: [condition] + terms) }
    /// Comes right after an `ifTrue`.
    static func otherwise(_ terms: [AML]) -> AML { AML(0xa1, package: terms) }

    static func returning(_ value: AML) -> AML { AML(0xa4, operands: [value]) }
    static func notify(_ object: AML, _ value: Int) -> AML { AML(0x86, operands: [object, integer(value)]) }

    /// Names four bytes of a buffer.
    static func createDoubleWordField(_ buffer: AML, at offset: Int, _ name: String) -> AML {
        AML(0x8a, operands: [buffer, integer(offset), path(name)])
    }
}
