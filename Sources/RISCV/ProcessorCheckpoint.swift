import BatonRuntime
import InstructionSets

/// What harts have is a part of the machine, as its devices are: state is loaded into harts that have the same.
///
/// A model may get more with a version of this VMM. State of the model as it was makes the harts what they were:
/// the guest sees the same ones before and after an update.
extension SoftwareAccelerator {
    func saveProcessor(to writer: inout StateWriter) {
        // As state was before there were choices: a VMM of that time can take it too.
        if processor.extensions == RISCVProcessor.original { return }
        writer.put("cpu", processor.text)
        writer.put("extensions", processor.extensions.allNames)
    }

    /// - Returns: what the harts are after the load.
    /// - Throws: how what was saved differs from what is here.
    func processorLoader(of reader: StateReader, hart: Int) throws(VMMError) -> RISCVProcessor {
        var saved = RISCVProcessor.original
        var text: String?
        if reader.has("cpu") {
            text = try reader.string("cpu")
            saved = []
            for name in try reader.strings("extensions", count: 0...64) {
                guard let extensions = RISCVExtensions(name: name) else {
                    throw VMMError(
                        "section '\(reader.section)' was saved by a CPU with '\(name)', which there is not here",
                        hint: "It was written by a newer version of this VMM.")
                }
                saved.formUnion(extensions)
            }
        }
        if hart == 0 { loadedExtensions = saved }
        guard saved == loadedExtensions else {
            throw VMMError("section '\(reader.section)' was saved by another CPU than that of the first hart")
        }
        if saved == processor.extensions { return processor }
        // The model itself, of another version.
        let isModel = processor.flags.isEmpty && (text == nil || text == processor.model)
        if isModel, text != nil || processor.model == "rv64" || processor.model == "max" {
            return processor.replacing(saved)
        }
        let more = saved.subtracting(processor.extensions).allNames
        let fewer = processor.extensions.subtracting(saved).allNames
        let differences = more.map { "\($0) was on" } + fewer.map { "\($0) was off" }
        throw VMMError(
            "section '\(reader.section)' was saved by another CPU than '-cpu \(processor.text)': "
                + differences.joined(separator: ", "),
            hint: "Start with -cpu \(text ?? "rv64") as before.")
    }
}
