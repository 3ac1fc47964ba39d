import BatonRuntime

/// The port at which firmware shows how far it has come, and to which an operating system writes to wait a
/// microsecond. Nobody looks at it: writes are ignored, and it reads as all ones, as a port without a device does.
public final class PostCodePort: MMIODevice {
    public static let port: UInt64 = 0x80
    public static let portCount: UInt64 = 1

    public init() {}

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0xff }
    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {}
}
