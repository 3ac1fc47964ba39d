import BatonRuntime
import Glibc

/// A NOR flash with Intel's basic and extended command set: two chips of 16 bits side by side, so a bus of 32 bits
/// (Common Flash Interface, JEDEC JESD68.01; Intel StrataFlash J3's data sheet, "Command Definitions"). It is QEMU's
/// `cfi.pflash01` as its boards for Arm and RISC-V have it, with blocks of 256 KiB.
///
/// CPUs read the contents as memory until a command asks for something else. Firmware keeps its variables there. With
/// the VM lock held.
package final class CFIFlash: MMIODevice, Device {
    package let stateName: String
    /// Bytes that are erased at once.
    package static let blockSize = 256 << 10
    /// Bytes that one command writes at most, from a multiple of as many on.
    static let bufferSize = 4 << 10
    /// A file is written in whole sectors.
    private static let sectorSize = 512

    /// What a chip understands in the low byte of each half of the bus.
    enum Command {
        static let programWord: UInt8 = 0x10, programWordToo: UInt8 = 0x40
        static let eraseBlock: UInt8 = 0x20
        static let clearStatus: UInt8 = 0x50
        static let lock: UInt8 = 0x60
        static let readStatus: UInt8 = 0x70
        static let readIdentifier: UInt8 = 0x90
        static let query: UInt8 = 0x98
        static let programBuffer: UInt8 = 0xe8
        static let readArray: UInt8 = 0xff, reset: UInt8 = 0xf0
        /// The second word of some.
        static let confirm: UInt8 = 0xd0, lockBlock: UInt8 = 0x01
    }

    /// Bits of the status.
    enum Status {
        static let ready: UInt8 = 0x80
        static let eraseFailed: UInt8 = 0x20
        static let programFailed: UInt8 = 0x10
        /// Both: the words of a command were not in their order.
        static let wrongSequence: UInt8 = 0x30
    }

    /// What the next word of the guest is.
    enum Step: UInt64 {
        case command = 0
        /// The second word of `command`.
        case second = 1
        /// A word for the buffer.
        case data = 2
        /// The confirmation of the buffer.
        case confirmation = 3
    }

    private unowned let space: AddressSpace
    private let address: UInt64
    private let contents: UnsafeMutableRawPointer
    private let size: Int
    /// Where the contents come from, and are written to.
    private let backend: BlockBackend?
    private let identity: FlashIdentity

    private var command = Command.readArray
    private var step = Step.command
    /// Errors, until they are cleared.
    private var errors: UInt8 = 0
    /// Words that are still to come, less one.
    private var wordsLeft: UInt64 = 0
    /// Offset of the part that the buffer stands for; nil before its first word.
    private var bufferStart: Int?
    private var buffer: [UInt8] = []

    /// - Parameters:
    ///   - block: the contents, a multiple of `blockSize` of them. They are mapped at `address`.
    ///   - backend: its file has as many bytes; nil for contents that go with the VM.
    /// - Throws: when something else is there.
    package init(name: String, block: RAMBlock, at address: UInt64, backend: BlockBackend?, space: AddressSpace)
        throws(VMMError)
    {
        precondition(block.usedLength % CFIFlash.blockSize == 0)
        stateName = name
        self.space = space
        self.address = address
        self.backend = backend
        size = block.usedLength
        contents = block.host
        identity = FlashIdentity(size: block.usedLength, blockSize: CFIFlash.blockSize, bufferSize: CFIFlash.bufferSize)
        try space.map(rom: block, at: address, size: UInt64(size), device: self)
    }

    /// Reads the contents from the file. For a fresh start.
    package func readContents() throws(VMMError) {
        guard let backend else { return }
        let vector = iovec(iov_base: contents, iov_len: size)
        let isDone = withUnsafePointer(to: vector) {
            backend.read(UnsafeBufferPointer(start: $0, count: 1), offset: 0)
        }
        guard isDone else { throw .system("Could not read '\(backend.filename)'") }
        space.didWrite(address, length: UInt64(size))
    }

    // MARK: Registers

    package func accepts(offset: UInt64, width: Int) -> Bool { width <= 4 }

    package func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        switch command {
        case Command.readArray:
            var value: UInt64 = 0
            withUnsafeMutableBytes(of: &value) {
                $0.copyBytes(from: UnsafeRawBufferPointer(start: contents + Int(offset), count: width))
            }
            return UInt64(littleEndian: value)
        case Command.readIdentifier: return onBothChips(identity.identifier(at: offset / 4), offset, width)
        case Command.query: return onBothChips(UInt16(identity.query(at: offset / 4)), offset, width)
        default: return onBothChips(UInt16(Status.ready | errors), offset, width)
        }
    }

    /// What both chips answer with, as an access of this width sees it.
    private func onBothChips(_ value: UInt16, _ offset: UInt64, _ width: Int) -> UInt64 {
        let bus = UInt64(value) | UInt64(value) << 16
        return bus >> (8 * (offset & 3)) & (width == 4 ? 0xffff_ffff : (1 << UInt64(8 * width)) - 1)
    }

    package func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        let low = UInt8(truncatingIfNeeded: value)
        switch step {
        case .command: begin(low, offset)
        case .second: goOn(low, offset, width, value)
        case .data: addToBuffer(offset, width, value)
        case .confirmation:
            if low == Command.confirm { programBuffer() } else { readArray(refusing: low) }
        }
        // What is not the contents comes from here.
        space.switchMemory(at: address, toDevice: command != Command.readArray)
    }

    private func begin(_ word: UInt8, _ offset: UInt64) {
        switch word {
        case Command.readArray, Command.reset: command = Command.readArray
        case Command.clearStatus:
            errors = 0
            command = Command.readArray
        case Command.readStatus, Command.readIdentifier, Command.query: command = word
        case Command.programWord, Command.programWordToo, Command.eraseBlock, Command.lock, Command.programBuffer:
            command = word
            step = .second
        default: readArray(refusing: word)
        }
    }

    private func readArray(refusing word: UInt8) {
        Log.guestError("\(stateName): \(Hex(UInt64(word))) is no command here")
        errors |= Status.wrongSequence
        command = Command.readArray
        step = .command
    }

    /// Takes the second word of a command.
    private func goOn(_ low: UInt8, _ offset: UInt64, _ width: Int, _ value: UInt64) {
        step = .command
        switch command {
        case Command.programWord, Command.programWordToo:
            let bytes = (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
            program(bytes, at: Int(offset))
        case Command.programBuffer:
            wordsLeft = value & 0xffff
            (bufferStart, buffer) = (nil, [])
            step = .data
        case Command.eraseBlock where low == Command.confirm: eraseBlock(at: Int(offset))
        // Blocks are never locked.
        case Command.lock where low == Command.confirm || low == Command.lockBlock: break
        default:
            if low == Command.readArray { command = Command.readArray } else { readArray(refusing: low) }
        }
    }

    private func addToBuffer(_ offset: UInt64, _ width: Int, _ value: UInt64) {
        let start = bufferStart ?? Int(offset) & ~(CFIFlash.bufferSize - 1)
        if bufferStart == nil {
            bufferStart = start
            buffer = [UInt8](UnsafeRawBufferPointer(start: contents + start, count: CFIFlash.bufferSize))
        }
        let place = Int(offset) - start
        if place >= 0, place <= CFIFlash.bufferSize - width {
            // Bits are only cleared.
            for byte in 0..<width { buffer[place + byte] &= UInt8(truncatingIfNeeded: value >> UInt64(8 * byte)) }
        } else {
            Log.guestError("\(stateName): a word at \(Hex(offset)) is outside of the buffer at \(Hex(UInt64(start)))")
            errors |= Status.programFailed
        }
        if wordsLeft == 0 { step = .confirmation } else { wordsLeft -= 1 }
    }

    private func programBuffer() {
        step = .command
        if let bufferStart, errors & Status.programFailed == 0 { store(buffer, at: bufferStart, Status.programFailed) }
        (bufferStart, buffer) = (nil, [])
    }

    // MARK: Contents

    private func program(_ bytes: [UInt8], at offset: Int) {
        let old = UnsafeRawBufferPointer(start: contents + offset, count: bytes.count)
        store(zip(old, bytes).map { $0 & $1 }, at: offset, Status.programFailed)
    }

    private func eraseBlock(at offset: Int) {
        let start = offset & ~(CFIFlash.blockSize - 1)
        store([UInt8](repeating: 0xff, count: CFIFlash.blockSize), at: start, Status.eraseFailed)
    }

    /// Writes to the file, then to memory, or to neither.
    private func store(_ bytes: [UInt8], at offset: Int, _ failure: UInt8) {
        guard write(bytes, at: offset) else { return errors |= failure }
        bytes.withUnsafeBytes { (contents + offset).copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        space.didWrite(address + UInt64(offset), length: UInt64(bytes.count))
    }

    private func write(_ bytes: [UInt8], at offset: Int) -> Bool {
        guard let backend else { return true }
        guard !backend.readOnly else { return false }
        let start = offset & ~(CFIFlash.sectorSize - 1)
        let end = (offset + bytes.count + CFIFlash.sectorSize - 1) & ~(CFIFlash.sectorSize - 1)
        var sectors = [UInt8](UnsafeRawBufferPointer(start: contents + start, count: end - start))
        sectors.replaceSubrange(offset - start..<offset - start + bytes.count, with: bytes)
        let isWritten = sectors.withUnsafeMutableBytes { buffer in
            withUnsafePointer(to: iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)) {
                backend.write(UnsafeBufferPointer(start: $0, count: 1), offset: UInt64(start))
            }
        }
        if !isWritten { Report.warning(VMMError.system("could not write to '\(backend.filename)'").description) }
        return isWritten
    }

    // MARK: Device

    package var isAsAtPowerOn: Bool? { command == Command.readArray && step == .command && errors == 0 }

    package func reset() {
        (command, step, errors, wordsLeft) = (Command.readArray, .command, 0, 0)
        (bufferStart, buffer) = (nil, [])
        space.switchMemory(at: address, toDevice: false)
    }

    package func save(to writer: inout StateWriter) {
        writer.put("command", UInt64(command))
        writer.put("step", step.rawValue)
        writer.put("errors", UInt64(errors))
        writer.put("words-left", wordsLeft)
        if let bufferStart {
            writer.put("buffer-start", UInt64(bufferStart))
            writer.put("buffer", bytes: buffer)
        }
    }

    package func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newCommand = UInt8(truncatingIfNeeded: try reader.unsigned("command", in: 0...0xff))
        let newStep = Step(rawValue: try reader.unsigned("step", in: 0...3)) ?? .command
        let newErrors = UInt8(truncatingIfNeeded: try reader.unsigned("errors", in: 0...0xff))
        let newWords = try reader.unsigned("words-left", in: 0...0xffff)
        var newStart: Int?
        var newBuffer: [UInt8] = []
        if reader.has("buffer-start") {
            let start = Int(try reader.unsigned("buffer-start", in: 0...UInt64(size - CFIFlash.bufferSize)))
            guard start % CFIFlash.bufferSize == 0 else {
                throw VMMError("the flash's buffer is for offset \(Hex(UInt64(start))), which is no start of one")
            }
            newStart = start
            newBuffer = try reader.bytes("buffer", count: CFIFlash.bufferSize...CFIFlash.bufferSize)
        }
        guard newStep != .confirmation || newStart != nil else { throw VMMError("the flash's buffer is missing") }
        try reader.finish()
        return { [self] in
            (command, step, errors, wordsLeft) = (newCommand, newStep, newErrors & Status.wrongSequence, newWords)
            (bufferStart, buffer) = (newStart, newBuffer)
            space.switchMemory(at: address, toDevice: command != Command.readArray)
        }
    }
}
