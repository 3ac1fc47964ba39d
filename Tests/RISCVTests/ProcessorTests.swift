import BatonRuntime
import Foundation
import InstructionSets
import RISCV
import TestSupport
import Testing

/// `-cpu`: models, properties, and what of them is part of a machine.
@Suite struct ProcessorTests {
    // MARK: Parsing

    @Test("models have what QEMU's have", arguments: RISCVProcessor.models)
    func model(_ name: String) throws {
        let processor = try RISCVProcessor(name)
        #expect(processor.flags.isEmpty && processor.text == name)
        #expect(processor.extensions.isSuperset(of: [.i, .m, .a, .f, .d, .c, .zicsr, .pmp]))
        #expect(try RISCVProcessor("\(name),zba=on,pmp=on").flags.isEmpty)
    }

    @Test("the default is rv64") func standard() throws {
        #expect(try RISCVProcessor(nil) == RISCVProcessor("rv64"))
        #expect(RISCVProcessor.standard == (try RISCVProcessor("rv64")))
    }

    @Test(
        "properties switch extensions",
        arguments: [
            ("rv64,zba=off", "rv64,zba=off"), ("rv64,zbb=false,zba=no", "rv64,zba=off,zbb=off"),
            ("rv64,zba=off,zba=on", "rv64"), ("rv64,zicond=on", "rv64,zicond=on"), ("max,zbb=off", "max,b=off,zbb=off"),
            ("rv64,b=on", "rv64,b=on"), ("rv64,sv57=off,v=off,h=off", "rv64,sv57=off"),
            ("rv64,sv48=on", "rv64,sv57=off"), ("rv64,sv48=off", "rv64,sv48=off,sv57=off"),
            ("rv64,sv39=off", "rv64,sv39=off,sv48=off,sv57=off"), ("rva22s64,sv48=on", "rva22s64,sv48=on"),
            ("rv64,f=off,d=off,zfa=off", "rv64,f=off,d=off,zfa=off"), ("rv64,cbom_blocksize=64,zfh=off,c=on", "rv64"),
            ("rv64,rva22u64=on", "rv64,b=on,zfhmin=on,zkt=on"),
        ])
    func properties(_ text: String, _ canonical: String) throws {
        #expect(try RISCVProcessor(text).text == canonical)
        #expect(try RISCVProcessor(canonical).extensions == RISCVProcessor(text).extensions)
    }

    @Test("a letter takes its parts along") func parts() throws {
        let without = try RISCVProcessor("rv64,a=off,zawrs=off,m=off").extensions
        #expect(without.isDisjoint(with: [.a, .m, .zaamo, .zalrsc, .zmmul, .za64rs]))
        #expect(without.letterNames == ["i", "f", "d", "c"])
    }

    @Test(
        "what there is not is refused by name",
        arguments: [
            ("rv128", "unable to find CPU model 'rv128'", "rv64"),
            ("rva23s64", "unable to find CPU model 'rva23s64'", "rva22s64"),
            ("rv64,v=on", "rv64-riscv-cpu.v=on", "rva22s64"), ("rv64,h=on", "rv64-riscv-cpu.h=on", "emulator"),
            ("max,zvbb=true", "max-riscv-cpu.zvbb=true".replacingOccurrences(of: "true", with: "on"), "vectors"),
            ("rv64,smaia=on", "smaia=on", "aia=aplic-imsic"), ("rv64,c=off", "c=off", ""),
            (
                "rv64,zba=maybe", "can't apply global rv64-riscv-cpu.zba=maybe: Parameter 'zba' expects 'on' or 'off'",
                ""
            ),
            ("rv64,zba", "Expected key=value format, found zba.", ""),
            ("rv64,nothing=on", "Property 'rv64-riscv-cpu.nothing' not found", ""),
            ("rv64,rva22x64=on", "Property 'rv64-riscv-cpu.rva22x64' not found", ""),
            ("rv64,zic64b=off", "Property 'rv64-riscv-cpu.zic64b' not found", ""),
            ("rv64,f=off", "D extension requires F extension", "d=off"),
            ("rv64,f=off,d=off", "Zfa extension requires F extension", "zfa=off"),
            ("rv64,a=off", "Zawrs extension requires A extension", "zawrs=off"),
            ("rv64,b=on,zbb=off", "B extension requires Zbb extension", "b=off"),
            ("rv64,sv57=on,sv48=off", "cannot disable sv48 satp mode if sv57 is enabled", "sv57=off"),
            ("rv64,cboz_blocksize=128", "cboz_blocksize=128", ""),
        ])
    func refusals(_ text: String, _ message: String, _ hint: String) throws {
        let error = #expect(throws: VMMError.self) { try RISCVProcessor(text) }
        #expect(error?.message.contains(message) == true, "\(error?.message ?? "")")
        if !hint.isEmpty { #expect(error?.hint?.contains(hint) == true, "\(error?.hint ?? "")") }
    }

    // MARK: Part of the machine

    private func checkpoint(_ machine: TestMachine) -> [UInt8] {
        var writer = StateWriter()
        machine.hart.save(to: &writer)
        return writer.encoded()
    }

    private func load(_ bytes: [UInt8], into machine: TestMachine) throws {
        try machine.hart.load(from: StateReader(section: "cpu0", version: 1, payload: bytes[...]))
    }

    @Test("state goes to a CPU with the same extensions, and to no other")
    func identity() throws {
        let saved = try TestMachine(cpu: "rv64,zba=off,zicond=on")
        saved.reset()
        let bytes = checkpoint(saved)
        try load(bytes, into: TestMachine(cpu: "rv64,zicond=on,zba=off"))
        for other in ["rv64", "rv64,zba=off", "max", "rva22s64"] {
            let error = #expect(throws: VMMError.self) { try load(bytes, into: TestMachine(cpu: other)) }
            #expect(error?.message.contains("was saved by another CPU than '-cpu \(other)'") == true)
            #expect(error?.hint == "Start with -cpu rv64,zicond=on,zba=off as before.")
        }
        let error = #expect(throws: VMMError.self) { try load(bytes, into: TestMachine(cpu: "rv64,zba=on,zicond=on")) }
        #expect(error?.message.hasSuffix(": zba was off") == true, "\(error?.message ?? "")")
    }

    @Test("state of an older VMM makes the default CPU what it was", arguments: ["rv64", "max"])
    func older(_ model: String) throws {
        let old = try TestMachine(cpu: model, isOriginal: true)
        old.reset()
        let bytes = checkpoint(old)
        #expect(!String(decoding: bytes, as: UTF8.self).contains("extensions"))
        let new = try TestMachine(cpu: model)
        try load(bytes, into: new)
        #expect(new.accelerator.processor.extensions == RISCVProcessor.original)
        #expect(new.accelerator.processor.text == model)
        // And goes on so: to the old VMM again, which knows nothing of it.
        #expect(checkpoint(new) == bytes)
        #expect(throws: VMMError.self) { try load(bytes, into: TestMachine(cpu: model + ",zba=off")) }
        #expect(throws: VMMError.self) { try load(bytes, into: TestMachine(cpu: "rva22s64")) }
    }

    /// Runs one instruction and gives mcause, or 0.
    private func cause(_ instruction: String, cpu: String) throws -> UInt64 {
        let machine = try TestMachine(
            cpu: cpu,
            assembly: """
                la t0, 1f
                csrw mtvec, t0
                li a0, 0
                la a1, 2f
                li t1, 3 << 13
                csrs mstatus, t1
                .option arch, +zbc, +zicond, +zicboz, +zicbom, +zfa, +zacas, +zcb, +zawrs, +svinval, +zfhmin
                \(instruction)
                j 3f
                .balign 4
                1: csrr a0, mcause
                3: \(TestMachine.finish("a2"))
                .balign 64
                2: .zero 64
                """.replacingOccurrences(of: "3: ", with: "3: addi a2, a0, 1\n"))
        return try machine.runUntilDone() - 1
    }

    @Test(
        "an extension that is off has no instructions",
        arguments: [
            ("zba", "sh1add a3, a4, a5"), ("zbb", "clz a3, a4"), ("zbc", "clmul a3, a4, a5"),
            ("zbs", "bset a3, a4, a5"),
            ("zicond", "czero.eqz a3, a4, a5"), ("zicboz", "cbo.zero (a1)"), ("zicbom", "cbo.clean (a1)"),
            ("zfa", "fround.d fa0, fa1"), ("zfhmin", "flh fa0, (a1)"), ("zacas", "amocas.w a3, a4, (a1)"),
            ("zcb", "c.not a3"), ("zawrs", "wrs.sto"), ("svinval", "sinval.vma zero, zero"), ("zifencei", "fence.i"),
            ("m", "mul a3, a4, a5"), ("zicntr", "rdcycle a3"), ("zihpm", "csrr a3, hpmcounter3"),
            ("sstc", "csrr a3, stimecmp"), ("pmp", "csrr a3, pmpcfg0"), ("d", "fadd.d fa0, fa1, fa2"),
            ("d", "fmadd.d fa0, fa1, fa2, fa3"), ("d", "c.fld fa0, (a1)"), ("d", "fsd fa0, (a1)"),
            ("d", "fcvt.s.d fa0, fa1"), ("f", "fadd.s fa0, fa1, fa2"), ("f", "flw fa0, (a1)"), ("f", "csrr a3, fcsr"),
            ("a", "amoadd.w a3, a4, (a1)"), ("a", "lr.d a3, (a1)"),
        ])
    func off(_ name: String, _ instruction: String) throws {
        #expect(try cause(instruction, cpu: "max") == 0)
        // What needs it goes first.
        let others = ["d": "zfa=off,", "f": "zfa=off,zfhmin=off,d=off,", "a": "zacas=off,zawrs=off,"]
        #expect(try cause(instruction, cpu: "max,\(others[name] ?? "")\(name)=off") == 2)
    }
}
