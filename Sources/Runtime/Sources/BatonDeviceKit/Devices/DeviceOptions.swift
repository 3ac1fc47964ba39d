import BatonBase

/// The options of one `-device`, with QEMU's errors for properties. Keys that
/// the device's type does not have were refused before.
public struct DeviceOptions {
    /// The type's name.
    public let model: String
    /// `id=`, checked to be unique among devices.
    public let id: String?
    /// `bus=`.
    public let bus: String?
    /// The properties, with the typed accessors.
    public let options: KeyValueOptions

    public init(model: String, id: String?, bus: String?, options: KeyValueOptions) {
        self.model = model
        self.id = id
        self.bus = bus
        self.options = options
    }

    public func text(_ property: String) throws(VMMError) -> String? { try options.string(property) }

    public func notFound(_ property: String, _ value: String) -> VMMError {
        VMMError("Property '\(model).\(property)' can't find value '\(value)'")
    }
    public func inUse(_ property: String, _ value: String) -> VMMError {
        VMMError("Property '\(model).\(property)' can't take value '\(value)', it's in use")
    }
    public func badValue(_ property: String, _ value: String) -> VMMError {
        VMMError("Property '\(model).\(property)' doesn't take value '\(value)'")
    }
}
