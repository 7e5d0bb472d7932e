module @backward {
  func.func public @main(%arg0: tensor<128x256xbf16>, %arg1: tensor<1024x256xbf16>, %arg2: tensor<1024x256xbf16>, %arg3: tensor<256x1024xbf16>, %arg4: tensor<128x1xf32>, %arg5: tensor<128x256xbf16>, %arg6: tensor<128x1024xbf16>, %arg7: tensor<128x1024xbf16>, %arg8: tensor<128x1024xbf16>, %arg9: tensor<128x256xbf16>) -> (tensor<256xbf16>, tensor<1024x256xbf16>, tensor<1024x256xbf16>, tensor<256x1024xbf16>) {
    %0 = stablehlo.dot_general %arg9, %arg3, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x256xbf16>, tensor<256x1024xbf16>) -> tensor<128x1024xbf16>
    %1 = stablehlo.convert %arg6 : (tensor<128x1024xbf16>) -> tensor<128x1024xf32>
    %2 = stablehlo.logistic %1 : tensor<128x1024xf32>
    %3 = stablehlo.multiply %1, %2 : tensor<128x1024xf32>
    %4 = stablehlo.convert %3 : (tensor<128x1024xf32>) -> tensor<128x1024xbf16>
    %5 = stablehlo.multiply %0, %4 : tensor<128x1024xbf16>
    %6 = stablehlo.dot_general %5, %arg2, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<1024x256xbf16>) -> tensor<128x256xbf16>
    %7 = stablehlo.multiply %0, %arg7 : tensor<128x1024xbf16>
    %8 = stablehlo.convert %7 : (tensor<128x1024xbf16>) -> tensor<128x1024xf32>
    %9 = stablehlo.constant dense<1.0> : tensor<128x1024xf32>
    %10 = stablehlo.negate %1 : tensor<128x1024xf32>
    %11 = stablehlo.exponential %10 : tensor<128x1024xf32>
    %12 = stablehlo.add %11, %9 : tensor<128x1024xf32>
    %13 = stablehlo.divide %9, %12 : tensor<128x1024xf32>
    %14 = stablehlo.multiply %8, %13 : tensor<128x1024xf32>
    %15 = stablehlo.subtract %9, %13 : tensor<128x1024xf32>
    %16 = stablehlo.multiply %1, %15 : tensor<128x1024xf32>
    %17 = stablehlo.add %16, %9 : tensor<128x1024xf32>
    %18 = stablehlo.multiply %14, %17 : tensor<128x1024xf32>
    %19 = stablehlo.convert %18 : (tensor<128x1024xf32>) -> tensor<128x1024xbf16>
    %20 = stablehlo.dot_general %19, %arg1, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<1024x256xbf16>) -> tensor<128x256xbf16>
    %21 = stablehlo.add %6, %20 : tensor<128x256xbf16>
    %22 = stablehlo.convert %21 : (tensor<128x256xbf16>) -> tensor<128x256xf32>
    %23 = stablehlo.convert %arg0 : (tensor<128x256xbf16>) -> tensor<128x256xf32>
    %24 = stablehlo.broadcast_in_dim %arg4, dims = [0, 1] : (tensor<128x1xf32>) -> tensor<128x256xf32>
    %25 = stablehlo.multiply %23, %24 : tensor<128x256xf32>
    %26 = stablehlo.multiply %22, %25 : tensor<128x256xf32>
    %27 = stablehlo.constant dense<0.0> : tensor<f32>
    %28 = stablehlo.reduce(%26 init: %27) applies stablehlo.add across dimensions = [0] : (tensor<128x256xf32>, tensor<f32>) -> tensor<256xf32>
    %29 = stablehlo.convert %28 : (tensor<256xf32>) -> tensor<256xbf16>
    %30 = stablehlo.dot_general %19, %arg5, contracting_dims = [0] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<128x256xbf16>) -> tensor<1024x256xbf16>
    %31 = stablehlo.dot_general %5, %arg5, contracting_dims = [0] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<128x256xbf16>) -> tensor<1024x256xbf16>
    %32 = stablehlo.dot_general %arg9, %arg8, contracting_dims = [0] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x256xbf16>, tensor<128x1024xbf16>) -> tensor<256x1024xbf16>
    return %29, %30, %31, %32 : tensor<256xbf16>, tensor<1024x256xbf16>, tensor<1024x256xbf16>, tensor<256x1024xbf16>
  }
}
