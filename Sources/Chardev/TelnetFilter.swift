/// The telnet protocol (RFC 854) as far as a console needs it: the server asks for characters one by one, without an echo of
/// the client's own, and takes the client's commands out of what it sends.
struct TelnetFilter {
    private enum Byte {
        static let command: UInt8 = 255
        /// WILL, WONT, DO and DONT have an option behind them.
        static let options: ClosedRange<UInt8> = 251...254
    }

    /// WILL ECHO, WILL SUPPRESS-GO-AHEAD, WILL TRANSMIT-BINARY, DO TRANSMIT-BINARY.
    static let greeting: [UInt8] = [255, 251, 1, 255, 251, 3, 255, 251, 0, 255, 253, 0]

    private enum State {
        case text, command, option
    }
    private var state = State.text

    /// Takes commands out of what has come.
    /// - Returns: how many bytes are left, at the start of the buffer.
    mutating func filter(_ bytes: UnsafeMutableRawBufferPointer) -> Int {
        var kept = 0
        for byte in bytes {
            switch state {
            case .text:
                if byte == Byte.command {
                    state = .command
                } else {
                    bytes[kept] = byte
                    kept += 1
                }
            case .command:
                state = Byte.options.contains(byte) ? .option : .text
                // Twice is the byte itself.
                if byte == Byte.command {
                    bytes[kept] = byte
                    kept += 1
                }
            case .option: state = .text
            }
        }
        return kept
    }
}
