/// Why an operation of the VMM was refused or failed.
///
/// One type for the whole process, as QEMU's `Error` is: what fails deep in a
/// device may have to be said to a QMP client, on the command line or in a
/// log, and each of these shows the same text. Carries no resources.
public struct VMMError: Error, CustomStringConvertible {
    /// The error class that QMP clients see (QEMU's `QapiErrorClass`).
    public enum Class: String {
        case genericError = "GenericError"
        case commandNotFound = "CommandNotFound"
        case deviceNotActive = "DeviceNotActive"
        case deviceNotFound = "DeviceNotFound"
    }

    public var errorClass: Class
    /// One sentence without a trailing newline: what was wrong, with which value.
    public var message: String
    /// What to do about it; shown to people, not to QMP clients.
    public var hint: String?

    public init(_ message: String, hint: String? = nil, class errorClass: Class = .genericError) {
        self.message = message
        self.hint = hint
        self.errorClass = errorClass
    }

    public var description: String {
        guard let hint else { return message }
        return message + "\n" + hint
    }

    /// The same error with `context: ` before its message.
    public func prefixed(_ context: String) -> VMMError {
        VMMError("\(context): \(message)", hint: hint, class: errorClass)
    }
}
