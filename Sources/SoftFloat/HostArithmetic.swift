// The host's FPU rounds to nearest even, so its results can be used where the
// flags are known without looking at its status register: operands that are
// normal or zero, a result clear of overflow and underflow, and either the
// inexact flag is set already (it stays set until the guest clears it) or a
// cheap exact computation shows the rounding error. Each function returns nil
// where that does not hold and the integer implementation must decide.

extension BinaryFloatingPoint {
    @inline(__always)
    fileprivate var isPlain: Bool { isNormal || isZero }

    /// Normal, and not the smallest one, which a tiny number may have been rounded to.
    @inline(__always)
    fileprivate var isClearOfLimits: Bool {
        magnitude > Self.leastNormalMagnitude && magnitude <= Self.greatestFiniteMagnitude
    }
}

enum HostArithmetic {
    @inline(__always)
    static func add<F: BinaryFloatingPoint>(_ a: F, _ b: F, flags: UInt8) -> F? {
        guard a.isPlain, b.isPlain else { return nil }
        let sum = a + b
        // A sum of zero is exact: both were zero, or they cancelled.
        guard sum.isClearOfLimits || sum.isZero else { return nil }
        if flags & SoftFloat.inexact == 0 {
            // Knuth's exact error of a sum. It is NaN if an intermediate overflows: then not zero either, so decline.
            let virtual = sum - a
            let error = (a - (sum - virtual)) + (b - virtual)
            if error != 0 { return nil }
        }
        return sum
    }

    @inline(__always)
    static func multiply<F: BinaryFloatingPoint>(_ a: F, _ b: F, flags: UInt8) -> F? {
        guard flags & SoftFloat.inexact != 0, a.isPlain, b.isPlain else { return nil }
        let product = a * b
        return product.isClearOfLimits ? product : nil
    }

    @inline(__always)
    static func divide<F: BinaryFloatingPoint>(_ a: F, _ b: F, flags: UInt8) -> F? {
        guard flags & SoftFloat.inexact != 0, a.isPlain, b.isNormal else { return nil }
        let quotient = a / b
        return quotient.isClearOfLimits ? quotient : nil
    }

    @inline(__always)
    static func squareRoot<F: BinaryFloatingPoint>(_ a: F, flags: UInt8) -> F? {
        guard flags & SoftFloat.inexact != 0, a.isNormal, a > 0 else { return nil }
        return a.squareRoot()
    }

    @inline(__always)
    static func multiplyAdd<F: BinaryFloatingPoint>(_ a: F, _ b: F, _ c: F, flags: UInt8) -> F? {
        guard flags & SoftFloat.inexact != 0, a.isPlain, b.isPlain, c.isPlain else { return nil }
        let result = c.addingProduct(a, b)
        return result.isClearOfLimits ? result : nil
    }
}
